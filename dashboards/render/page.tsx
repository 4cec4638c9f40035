// The panels of the dashboard, drawn with Grafana's own components from the data that
// render.py collected (window.DATA). Only the heatmap's cells are drawn here: in Grafana
// they come from a plugin. Its axes and frame are Grafana's as well.
import { createTheme, dateTime, EventBusSrv, FieldColorModeId, FieldType, getDisplayProcessor, getValueFormat, formattedValueToString, ThemeContext } from '@grafana/data';
import { BarGauge, BigValue, BigValueColorMode, BigValueGraphMode, GlobalStyles, PanelChrome, PanelContextProvider, PortalContainer, TimeSeries, UPlotChart, UPlotConfigBuilder } from '@grafana/ui';
import { AxisPlacement, BarGaugeDisplayMode, BarGaugeValueMode, ScaleDirection, ScaleDistribution, ScaleOrientation, TooltipDisplayMode, VizOrientation } from '@grafana/schema';
import { createRoot } from 'react-dom/client';
import '@fontsource/inter/latin-400.css';
import '@fontsource/inter/latin-500.css';

type Series = { name: string; labels: Record<string, string>; times: number[]; values: Array<number | null> };
type Mark = { name: string; color: string; time: number };
type Data = { panels: Array<{ panel: any; series: Series[] }>; from: number; to: number; marks: Mark[] };
declare const window: any;
const { DATA, SETTINGS } = window as { DATA: Data; SETTINGS: { rows: string[]; width: number; scheme: 'dark' | 'light' } };

const theme = createTheme({ colors: { mode: SETTINGS.scheme } });
const CELL = 38, GAP = 8, COLUMN = (SETTINGS.width - GAP) / 24;
const timeRange = { from: dateTime(DATA.from * 1000), to: dateTime(DATA.to * 1000), raw: { from: 'now-5m', to: 'now' } };

// ---- series as Grafana's fields -------------------------------------------------------

function configOf(panel: any, name: string) {
  const { color, custom, ...rest } = structuredClone(panel.fieldConfig.defaults);
  const config: any = { color: color ?? { mode: FieldColorModeId.PaletteClassic }, ...rest, custom: { ...custom } };
  for (const { matcher, properties } of panel.fieldConfig.overrides) {
    if (matcher.options !== name) continue;
    for (const { id, value } of properties) {
      if (id.startsWith('custom.')) config.custom[id.slice(7)] = value;
      else config[id] = value;
    }
  }
  return config;
}

function frameOf(panel: any, one: Series, index: number): any {
  const config = { ...configOf(panel, one.name), displayName: one.name };
  const field: any = { name: one.name, type: FieldType.number, config, values: one.values, state: { seriesIndex: index, displayName: one.name } };
  field.display = getDisplayProcessor({ field, theme });
  const time = { name: 'Time', type: FieldType.time, config: {}, values: one.times.map((t) => t * 1000), state: {} };
  return { refId: String(index), fields: [time, field], length: one.values.length };
}

function last(values: Array<number | null>) {
  return values.findLast((v) => v !== null) ?? null;
}

// ---- panels ----------------------------------------------------------------------------

function Lines({ panel, series, width, height }: any) {
  const marks = (builder: UPlotConfigBuilder) => {
    builder.addHook('draw', (u) => {
      for (const mark of DATA.marks) {
        const x = Math.round(u.valToPos(mark.time * 1000, 'x', true));
        u.ctx.save();
        u.ctx.strokeStyle = theme.visualization.getColorByName(mark.color);
        u.ctx.setLineDash([4, 4]);
        u.ctx.beginPath();
        u.ctx.moveTo(x, u.bbox.top);
        u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
        u.ctx.stroke();
        u.ctx.restore();
      }
    });
    return null;
  };
  const legend = panel.options.legend;
  return (
    <TimeSeries frames={series.map((one: Series, i: number) => frameOf(panel, one, i))} width={width} height={height} timeRange={timeRange as any}
      timeZone="utc" legend={legend} options={{}}>{(builder) => marks(builder)}</TimeSeries>
  );
}

function Stat({ panel, series, width, height }: any) {
  const frame = frameOf(panel, series[0] ?? { name: '', times: [], values: [null] }, 0);
  const field = frame.fields[1];
  const known = field.values.filter((v: number | null) => v !== null), min = Math.min(...known), max = Math.max(...known);
  field.state.range = { min, max, delta: max - min };
  field.config.displayName = '';
  field.config.color = { mode: FieldColorModeId.Thresholds };
  field.display = getDisplayProcessor({ field, theme });
  return (
    <BigValue theme={theme} width={width} height={height} value={field.display(last(field.values))} colorMode={BigValueColorMode.Value}
      graphMode={panel.options.graphMode as BigValueGraphMode} sparkline={panel.options.graphMode === 'none' ? undefined : ({ y: field, x: frame.fields[0] } as any)} />
  );
}

function Bars({ panel, series, width, height }: any) {
  const each = height / series.length - 4;
  return series.map((one: Series, i: number) => {
    const field = frameOf(panel, one, i).fields[1];
    field.config.color = { mode: FieldColorModeId.Thresholds };
    field.display = getDisplayProcessor({ field, theme });
    const value = { ...field.display(last(field.values)), title: one.name };
    const factors = { title: '0.125 ×', text: '100%' };
    return (
      <div key={one.name} style={{ marginBottom: 4 }}>
        <BarGauge theme={theme} width={width} height={each} value={value} field={field.config} display={field.display} orientation={VizOrientation.Horizontal}
          displayMode={BarGaugeDisplayMode.Basic} valueDisplayMode={BarGaugeValueMode.Color} alignmentFactors={factors} />
      </div>
    );
  });
}

// Oranges, from hardly to very: the scheme that the dashboard asks for.
const shade = (share: number) => `rgba(${255}, ${Math.round(225 - 135 * share)}, ${Math.round(170 - 170 * share)}, ${0.25 + 0.75 * share})`;

function Heat({ panel, series, width, height }: any) {
  const seconds = (text: string) => formattedValueToString(getValueFormat('s')(Number(text), 1));
  const rows: Series[] = [...series].sort((a, b) => Number(a.labels.le.replace('+Inf', '1e99')) - Number(b.labels.le.replace('+Inf', '1e99')));
  const times = rows[0].times;
  const count = (row: number, at: number) => Math.max(0, (rows[row].values[at] ?? 0) - (row ? (rows[row - 1].values[at] ?? 0) : 0));
  const used = rows.map((_, row) => row).filter((row) => times.some((_, at) => count(row, at) > 1e-9));
  const low = Math.max(0, Math.min(...used) - 1), high = Math.min(rows.length - 1, Math.max(...used) + 1);
  const most = Math.max(...used.map((row) => Math.max(...times.map((_, at) => count(row, at)))));
  const builder = new UPlotConfigBuilder('utc');
  builder.addScale({ scaleKey: 'x', isTime: true, orientation: ScaleOrientation.Horizontal, direction: ScaleDirection.Right, range: () => [DATA.from * 1000, DATA.to * 1000] });
  builder.addScale({ scaleKey: 'y', orientation: ScaleOrientation.Vertical, direction: ScaleDirection.Up, distribution: ScaleDistribution.Linear, range: () => [low - 1, high] as any });
  builder.addAxis({ scaleKey: 'x', isTime: true, placement: AxisPlacement.Bottom, theme, timeZone: 'utc' });
  const step = Math.max(1, Math.ceil((high - low + 2) / (height / 26)));
  const splits = () => Array.from({ length: high - low + 2 }, (_, i) => low - 1 + i).filter((i) => (i - low + 1) % step === 0);
  builder.addAxis({ scaleKey: 'y', placement: AxisPlacement.Left, theme, splits: splits as any, size: 70,
    values: ((_: any, at: number[]) => at.map((i) => (i < 0 ? '0 s' : rows[i].labels.le === '+Inf' ? '∞' : seconds(rows[i].labels.le)))) as any });
  builder.addSeries({ scaleKey: 'y', theme, pathBuilder: (() => null) as any, show: true } as any);
  builder.addHook('drawClear', (u) => {
    const wide = Math.abs(u.valToPos(times[1] * 1000, 'x', true) - u.valToPos(times[0] * 1000, 'x', true));
    for (const row of used)
      times.forEach((time, at) => {
        const n = count(row, at);
        if (n <= 1e-9) return;
        u.ctx.fillStyle = shade(Math.sqrt(n / most));
        const x = u.valToPos(time * 1000, 'x', true), top = u.valToPos(row, 'y', true), bottom = u.valToPos(row - 1, 'y', true);
        u.ctx.fillRect(Math.max(u.bbox.left, x - wide), top + 1, wide - 1, bottom - top - 1);
      });
  });
  return <UPlotChart config={builder} width={width} height={height} data={[times.map((t) => t * 1000), times.map(() => null)] as any} />;
}

const KINDS: Record<string, any> = { timeseries: Lines, stat: Stat, heatmap: Heat, bargauge: Bars };

// ---- the page ---------------------------------------------------------------------------

function Page() {
  const boxes: any[] = [];
  let shown = false, top = 0, row = -1, rowTop = 0;
  for (const { panel, series } of DATA.panels) {
    if (panel.type === 'row') {
      shown = SETTINGS.rows.length === 0 || SETTINGS.rows.includes(panel.title);
      if (shown) {
        boxes.push(<div key={panel.id} style={{ position: 'absolute', left: GAP, top: top * CELL + 14, ...(theme.typography.h5 as any), color: theme.colors.text.primary }}>{panel.title}</div>);
        top += 1;
        row = -1;
      }
      continue;
    }
    if (!shown) continue;
    const { x, y, w, h } = panel.gridPos;
    if (y !== row) {
      row = y;
      rowTop = top;
      top += h;
    }
    const Kind = KINDS[panel.type], bare = panel.type === 'stat' || panel.type === 'bargauge';
    boxes.push(
      <div key={panel.id} style={{ position: 'absolute', left: GAP + x * COLUMN, top: GAP + rowTop * CELL }}>
        <PanelChrome title={panel.title} description={panel.description} width={w * COLUMN - GAP} height={h * CELL - GAP} padding={bare ? 'md' : 'sm'}>
          {(width: number, height: number) => <Kind panel={panel} series={series} width={width} height={height} />}
        </PanelChrome>
      </div>
    );
  }
  return <div style={{ position: 'relative', height: top * CELL + 2 * GAP, width: SETTINGS.width, background: theme.colors.background.canvas }}>{boxes}</div>;
}

const bus = new EventBusSrv();
document.body.style.margin = '0';
document.body.style.background = theme.colors.background.canvas;
// The axes are as wide as their labels, which are measured when they are drawn: the font must be there by then.
await Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 12px Inter`)));
createRoot(document.getElementById('root')!).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <PortalContainer />
    <PanelContextProvider value={{ eventsScope: '', eventBus: bus } as any}>
      <Page />
    </PanelContextProvider>
  </ThemeContext.Provider>
);

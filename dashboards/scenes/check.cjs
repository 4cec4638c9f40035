// Runs bufferpool.json in Grafana's own engine of variables, queries and annotations (@grafana/scenes), against a Prometheus server:
//
//     npm ci && node check.cjs http://localhost:9090 '{"pool": ["shop"]}'
//
// It prints what the variables found, which expressions were sent, and how many series and events came back, as JSON: first with the
// dashboard's own choice (All), then with the one that is given. Grafana's data source is not on npm under Apache-2.0, so the one here
// does the same with what the engine hands it: it fills in the variables, and asks the server.
require("./page.cjs");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const { from, of, map, catchError } = require("rxjs");
const { DataSourceApi, toDataFrame, FieldType, LoadingState } = require("@grafana/data");
const { setDataSourceSrv, setRunRequest } = require("@grafana/runtime");
const S = require("@grafana/scenes");

const board = JSON.parse(readFileSync(join(__dirname, "..", "bufferpool.json"), "utf8"));
const [server, chosen] = [process.argv[2], JSON.parse(process.argv[3] ?? "{}")];
const TYPE = { id: 1, name: "Prometheus", uid: "prom", type: "prometheus", access: "proxy", jsonData: {}, readOnly: false, meta: { id: "prometheus", name: "Prometheus", info: { logos: {} } } };

async function ask(path, args) {
  const answer = await (await fetch(`${server}${path}?${new URLSearchParams(args)}`)).json();
  if (answer.status !== "success") throw new Error(answer.error);
  return answer.data;
}

const escaped = (text) => String(text).replace(/\\/g, "\\\\").replace(/[$^*{}[\]'+?.()|]/g, "\\$&");
// As Grafana's data source writes the values of a variable in a matcher.
function matcher(value, variable) {
  if (!variable.multi && !variable.includeAll) return String(value).replace(/"/g, '\\"');
  if (typeof value === "string") return escaped(value);
  return value.length === 1 ? escaped(value[0]) : `(${value.map(escaped).join("|")})`;
}

class Prometheus extends DataSourceApi {
  constructor() {
    super(TYPE);
    this.annotations = {
      prepareAnnotation: ({ expr, step, ...rest }) => ({ ...rest, target: { refId: "Anno", expr, interval: step } }),
      prepareQuery: (annotation) => annotation.target,
      processEvents: (annotation, frames) => of(frames.flatMap((frame) => [...frame.fields[1].values].map(() => ({ text: annotation.name })))),
    };
  }
  filled(expr, vars) {
    const times = { __rate_interval: { value: "4s" }, __range: { value: "15s" } };
    return S.sceneGraph.interpolate(vars.__sceneObject.value.valueOf(), expr, { ...vars, ...times }, matcher);
  }
  async metricFindQuery(query, request) {
    const [, series, label] = /^label_values\((.*), (\w+)\)$/.exec(this.filled(query, request.scopedVars));
    return (await ask(`/api/v1/label/${label}/values`, { "match[]": series })).map((text) => ({ text }));
  }
  async query(request) {
    const [start, end] = [request.range.from.valueOf() / 1000, request.range.to.valueOf() / 1000];
    const frames = [];
    for (const target of request.targets) {
      const expr = this.filled(target.expr, request.scopedVars);
      sent.push({ expr, refId: target.refId });
      for (const one of (await ask("/api/v1/query_range", { query: expr, start, end, step: 1 })).result)
        frames.push(toDataFrame({ refId: target.refId, fields: [
          { name: "Time", type: FieldType.time, values: one.values.map(([at]) => at * 1000) },
          { name: "Value", type: FieldType.number, values: one.values.map(([, value]) => Number(value)), labels: one.metric }] }));
    }
    return { data: frames };
  }
}

let sent = [];
const source = new Prometheus();
setDataSourceSrv({
  getList: () => [TYPE],
  getInstanceSettings: () => TYPE,
  get: async (ref, vars) => {
    const uid = ref?.uid && vars?.__sceneObject ? S.sceneGraph.interpolate(vars.__sceneObject.value.valueOf(), ref.uid, vars) : ref?.uid;
    if (uid !== TYPE.uid && uid !== TYPE.name) throw new Error(`no data source ${uid}`);
    return source;
  },
});
setRunRequest((ds, request, query) => from((query ?? ds.query.bind(ds))(request)).pipe(
  map((found) => ({ state: LoadingState.Done, series: found.data, annotations: [], timeRange: request.range, request })),
  catchError((error) => of({ state: LoadingState.Error, series: [], annotations: [], timeRange: request.range, request, error, errors: [error] }))));

function variable(one) {
  const { name, label, query } = one;
  if (one.type === "datasource") return new S.DataSourceVariable({ name, label, pluginId: query });
  return new S.QueryVariable({
    name, label, query, datasource: one.datasource, refresh: one.refresh, isMulti: one.multi, includeAll: one.includeAll,
    allValue: one.allValue, value: one.current.value, text: one.current.text,
  });
}

const layers = board.annotations.list.map((query) => new S.dataLayers.AnnotationsDataLayer({ name: query.name, query }));
const panels = board.panels.filter((panel) => panel.targets).map((panel) => new S.SceneFlexItem({
  key: panel.title, body: new S.SceneCanvasText({ text: panel.title }),
  $data: new S.SceneQueryRunner({ queries: panel.targets, datasource: panel.datasource, maxDataPoints: 100 }),
}));
const scene = new S.EmbeddedScene({
  $timeRange: new S.SceneTimeRange({ from: "now-20s", to: "now" }),
  $variables: new S.SceneVariableSet({ variables: board.templating.list.map(variable) }),
  $data: new S.SceneDataLayerSet({ layers }),
  body: new S.SceneFlexLayout({ children: panels }),
});

async function until(holds, what) {
  for (const end = Date.now() + 120_000; !holds(); await new Promise((done) => setTimeout(done, 50)))
    if (Date.now() > end) throw new Error(`not within two minutes: ${what}`);
}

const variables = () => scene.state.$variables.state.variables;
const settled = () => !variables().some((one) => one.state.loading) && !variables().some((one) => S.sceneGraph.hasVariableDependencyInLoadingState(scene));
const done = (data) => data && [LoadingState.Done, LoadingState.Error].includes(data.state);

async function look() {
  await until(settled, "the variables");
  await until(() => panels.every((panel) => done(panel.state.$data.state.data)), "the panels");
  await until(() => layers.every((layer) => done(layer.state.data)), "the annotations");
  return {
    variables: Object.fromEntries(variables().map((one) => [one.state.name, { value: one.state.value, options: (one.state.options ?? []).map(({ value }) => value), error: one.state.error ?? null }])),
    panels: panels.map((panel) => ({
      title: panel.state.key, series: panel.state.$data.state.data.series.length, error: panel.state.$data.state.data.errors?.[0]?.message ?? null })),
    annotations: layers.map((layer) => ({ name: layer.state.query.name, events: layer.state.data.series.reduce((n, frame) => n + frame.length, 0) })),
    sent,
  };
}

async function main() {
  scene.activate();
  for (const one of [scene.state.$variables, scene.state.$data, scene.state.body, ...panels]) if (!one.isActive) one.activate();
  const all = await look();
  if (!Object.keys(chosen).length) return all;
  sent = [];
  for (const [name, value] of Object.entries(chosen)) S.sceneGraph.lookupVariable(name, scene).changeValueTo(value);
  const queries = [...board.annotations.list, ...board.panels.flatMap((panel) => panel.targets ?? [])];
  const asked = queries.filter(({ expr }) => Object.keys(chosen).some((name) => expr.includes(`$${name}"`)));
  await until(() => sent.length >= asked.length, "the panels with another choice");
  return { ...all, chosen: await look() };
}

main().then((found) => process.stdout.write(`\n${JSON.stringify(found)}\n`, () => process.exit(0))).catch((error) => { console.error(error); process.exit(1); });

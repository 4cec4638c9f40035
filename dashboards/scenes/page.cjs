// The globals of a browser that the modules of Grafana need when they are loaded.
const { JSDOM } = require("jsdom");

const { window } = new JSDOM("<!doctype html><body></body>", { url: "http://localhost/", pretendToBeVisual: true });
window.matchMedia = () => ({ matches: false, addEventListener() {}, removeEventListener() {}, addListener() {}, removeListener() {} });
window.HTMLCanvasElement.prototype.getContext = () => null;
window.devicePixelRatio = 1;
const nothing = class { observe() {} unobserve() {} disconnect() {} };
const own = { window, self: window, ResizeObserver: nothing, IntersectionObserver: nothing };
for (const name of ["navigator", "location", "Event", "CustomEvent", "MutationObserver"]) own[name] = window[name];
for (const [name, value] of Object.entries(own)) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
for (const name of Object.getOwnPropertyNames(window))
  if (!(name in globalThis)) Object.defineProperty(globalThis, name, { value: window[name], configurable: true, writable: true });
for (const kind of [".css", ".svg", ".png", ".woff2"]) require.extensions[kind] = (module) => { module.exports = ""; };

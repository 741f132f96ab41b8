// Lets the search of the documentation site run from files on disk (file:), where browsers refuse workers: the worker's script
// runs in a hidden frame. Its scripts load one after another; importScripts returns a promise, which the theme's worker awaits.
if (location.protocol === "file:") {
  const load = (document, url) =>
    new Promise((resolve, reject) => {
      const script = Object.assign(document.createElement("script"), { src: url, onload: resolve, onerror: reject });
      document.head.append(script);
    });
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true });
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      const deliver = inside.postMessage.bind(inside);
      inside.importScripts = (...urls) =>
        urls.reduce((before, one) => before.then(() => load(inside.document, one)), Promise.resolve());
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const loaded = load(inside.document, url);
      this.postMessage = (data) => loaded.then(() => deliver(data, "*"));
    }

    terminate() {
      this.frame.remove();
    }
  };
}

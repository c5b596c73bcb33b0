"use strict";
// Brings the first page up to date: the parts "live" and "recent" come as HTML from /events, and only what differs is changed, so
// that nobody loses the place, the focus or the selection. Everything is there without it.
(() => {
  const serverTime = (el) => Date.parse(el.dataset.now);
  let ahead = serverTime(document.body) - Date.now(); // the server's clock counts

  // age says how long ago something was, as the server does.
  const age = (ms) => {
    const s = Math.floor(ms / 1000);
    if (s < 2) return "now";
    if (s < 100) return s + " s ago";
    if (s < 6000) return Math.floor(s / 60) + " min ago";
    if (s < 172800) return Math.floor(s / 3600) + " h ago";
    return Math.floor(s / 86400) + " days ago";
  };
  const ages = (root) => {
    for (const t of root.querySelectorAll("time[datetime]")) {
      const text = age(Date.now() + ahead - Date.parse(t.dateTime));
      if (t.textContent !== text) t.textContent = text;
    }
  };

  const key = (n) => (n.nodeType === Node.ELEMENT_NODE && n.dataset.key) || "";
  const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);

  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const fresh = (n) => {
    if (n.nodeName === "LI" && key(n) && !calm.matches) n.animate([{ opacity: 0.2 }, { opacity: 1 }], 800);
  };

  // morph makes a like b with as few changes as can be. Children with a data-key are found again wherever they are.
  const morph = (a, b) => {
    if (a.nodeType !== Node.ELEMENT_NODE) {
      if (a.nodeValue !== b.nodeValue) a.nodeValue = b.nodeValue;
      return;
    }
    for (const { name } of [...a.attributes]) if (!b.hasAttribute(name)) a.removeAttribute(name);
    for (const { name, value } of b.attributes) if (a.getAttribute(name) !== value) a.setAttribute(name, value);
    const keyed = new Map();
    for (const c of a.children) if (key(c)) keyed.set(key(c), c);
    let at = a.firstChild;
    for (const want of [...b.childNodes]) {
      let have = key(want) ? keyed.get(key(want)) : at && !key(at) ? at : null;
      if (!have || !alike(have, want)) {
        fresh(a.insertBefore(document.importNode(want, true), at));
        continue;
      }
      if (have === at) at = at.nextSibling;
      else a.insertBefore(have, at);
      morph(have, want);
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  };

  const update = (e) => {
    const old = document.getElementById(e.type);
    const now = new DOMParser().parseFromString(e.data, "text/html").getElementById(e.type);
    if (!old || !now) return;
    ahead = serverTime(now) - Date.now();
    ages(now);
    morph(old, now);
  };

  const following = document.getElementById("following");
  let source = null, again = 0;
  const say = (text, state) => {
    following.textContent = text;
    following.dataset.state = state;
  };
  const stop = () => {
    clearTimeout(again);
    if (source) source.close();
    source = null;
  };
  const follow = () => {
    stop();
    source = new EventSource("/events");
    source.onopen = () => say("live", "live");
    source.onerror = () => {
      say("connection lost, trying again", "lost");
      if (source.readyState === EventSource.CLOSED) again = setTimeout(follow, 5000 + 5000 * Math.random());
    };
    for (const part of ["live", "recent"]) source.addEventListener(part, update);
  };
  if (following && window.EventSource) {
    // A browser has few connections to one server for all its tabs: those that nobody looks at need none.
    document.addEventListener("visibilitychange", () => (document.hidden ? stop() : follow()));
    window.addEventListener("pagehide", stop);
    window.addEventListener("pageshow", (e) => { if (e.persisted) follow(); });
    if (!document.hidden) follow();
  }
  setInterval(() => ages(document), 1000);

  if (navigator.clipboard) {
    for (const pre of document.querySelectorAll("pre[data-copy]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(pre.querySelector("code").textContent.trim());
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 2000);
      });
      pre.parentNode.insertBefore(button, pre.nextSibling);
    }
  }
})();

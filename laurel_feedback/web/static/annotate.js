// The annotators' pages with a script: keys, drafts, signs of life, and an outbox that keeps an answer until the server has it.
// Everything works without this file.
const desk = document.getElementById("desk");
const form = document.getElementById("form");
const status = document.getElementById("status");
const who = document.querySelector("form[data-logout] b")?.textContent ?? "";
const csrf = document.querySelector("input[name=csrf]")?.value ?? "";
const BOX = `laurel-outbox-${who}`, KEYS = "laurel-keys-off";
document.documentElement.classList.add("scripted");

function say(text, kind = "", more = []) {
  if (!status) return;
  const p = document.createElement("p");
  p.className = `note ${kind}`;
  p.append(text, ...more);
  status.replaceChildren(p);
}

function newKey() {
  if (form && crypto.randomUUID) form.elements.key.value = crypto.randomUUID();
}

async function send(url, body) {
  return fetch(url, { method: "POST", body, headers: { Accept: "application/json" }, redirect: "error", keepalive: body.toString().length < 30000 });
}

function go(to) {
  const target = new URL(to, location);
  if (target.pathname + target.search !== location.pathname + location.search) { location.assign(target); return; }
  history.replaceState(null, "", target); // the same page with more to tell: a change of its #part alone would not load it
  location.reload();
}

// The outbox: written before anything is sent, emptied by the server's yes.
const stored = () => JSON.parse(localStorage.getItem(BOX) ?? "{}");
function store(key, entry) {
  const all = stored();
  if (entry) all[key] = entry; else delete all[key];
  if (Object.keys(all).length) localStorage.setItem(BOX, JSON.stringify(all)); else localStorage.removeItem(BOX);
}

// One answer of the box. Returns "sent", "refused" or "later".
async function deliver(key, entry, here) {
  const body = new URLSearchParams(entry.body);
  body.set("csrf", csrf); // the one of this session: the answer may be older than the login
  let response;
  try { response = await send(entry.url, body); } catch { return "later"; }
  const told = await response.json().catch(() => null);
  if (response.ok && told?.ok) {
    store(key, null);
    if (here) go(told.next);
    return "sent";
  }
  if (response.status === 429 || response.status >= 500 || !told) return "later";
  const back = document.createElement("a");
  back.href = entry.page;
  back.textContent = "Open that sample";
  const drop = document.createElement("button");
  drop.type = "button"; drop.className = "quiet"; drop.textContent = "Throw this answer away";
  drop.addEventListener("click", () => { store(key, null); status.replaceChildren(); });
  const kept = [403, 404].includes(response.status);
  if (!kept) store(key, null); // the server has it as a draft
  say(`${here ? "Not submitted" : "An answer from before was not taken"}: ${told.error} ${told.fix} What you filled in is kept. `, "bad",
    kept ? [drop] : here ? [] : [back]);
  status.scrollIntoView({ block: "center" });
  return "refused";
}

let waiting = 0, timer = 0, delivering = false, here = ""; // here: the key of this page's own answer, once it is in the box
async function flush() {
  if (!who) return;
  clearTimeout(timer);
  if (delivering) { timer = setTimeout(flush, 300); return; }
  delivering = true;
  let later = false;
  try {
    for (const [key, entry] of Object.entries(stored())) {
      const result = await deliver(key, entry, key === here);
      later ||= result === "later";
      if (key === here && result !== "later") here = "";
      if (result === "refused") { newKey(); given = false; }
    }
  } finally { delivering = false; }
  if (here && !stored()[here]) { go(desk.dataset.next); return; } // another tab has delivered it
  if (later) {
    say("The server does not answer. Your answer is safe in this browser and is sent as soon as it can be. You can leave this page open.", "warn");
    waiting = Math.min(30000, (waiting || 1000) * 2);
    timer = setTimeout(flush, waiting);
  } else if (waiting) {
    waiting = 0;
    say("Your answer has arrived.");
  }
}

function submit(event) {
  const button = event.submitter;
  if (button?.hasAttribute("formaction") && !button.formAction.endsWith("/answer")) return; // skip and draft go the plain way
  event.preventDefault();
  const data = new URLSearchParams(new FormData(form));
  const key = data.get("key");
  clearTimeout(drafting);
  given = true;
  try {
    if (stored()[key]) return; // a second click
    store(key, { url: form.getAttribute("action"), body: data.toString(), page: location.pathname });
  } catch { form.submit(); return; } // no room or no storage: the plain way
  say("Sending ...");
  here = key;
  flush();
}

// Drafts.
let drafting = 0, unsaved = false, given = false; // given: an answer is on its way, and what is clicked after it is no draft
function saveDraft() {
  clearTimeout(drafting);
  if (!unsaved || given) return;
  unsaved = false;
  const data = new URLSearchParams(new FormData(form));
  if (stored()[data.get("key")]) return;
  send(`${desk.dataset.base}/draft`, data).then((r) => r.text()).catch(() => {});
}

// Signs of life: sizes and times, never text.
let last = Date.now(), pasted = 0;
function sign(kind, size = 0) {
  send(`${desk.dataset.base}/alive`, new URLSearchParams({ csrf, kind, size }))
    .then(async (r) => { const told = await r.json(); if (r.status === 409 && !here) say(`${told.error} ${told.fix}`, "warn"); })
    .catch(() => {});
}
function awake() { last = Date.now(); }

function watch() {
  const idle = document.getElementById("idle");
  for (const name of ["keydown", "pointerdown", "pointermove", "scroll", "input"]) addEventListener(name, awake, { passive: true });
  addEventListener("focus", () => sign("focus"));
  addEventListener("blur", () => sign("blur"));
  idle.addEventListener("close", () => { awake(); sign("ping"); });
  setInterval(() => {
    if (Date.now() - last > 1000 * Number(desk.dataset.idle)) { if (!idle.open && !document.querySelector("dialog[open]")) idle.showModal(); }
    else if (!document.hidden) sign("ping");
  }, 30000);
  sign("focus");
}

function pasting(event) {
  const text = event.clipboardData?.getData("text") ?? "";
  const own = document.querySelector("main").textContent.includes(text.trim());
  sign("paste", text.length);
  if (!own) pasted += text.length;
}

function share() {
  const text = document.getElementById("rationale")?.value ?? "";
  form.elements.pasted.value = text ? Math.min(1, pasted / text.length).toFixed(3) : "";
}

// Keys.
function rank(number) {
  const groups = [...form.querySelectorAll("[data-rank]")];
  const at = groups.find((g) => g.contains(document.activeElement) && !g.dataset.done) ?? groups.find((g) => !g.querySelector(":checked")) ?? null;
  const input = at?.querySelector(`input[value="${number}"]`);
  if (!input) return;
  input.checked = true;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  const next = groups.find((g) => !g.querySelector(":checked"));
  (next?.querySelector("input") ?? document.getElementById("submit")).focus();
}

function key(event) {
  if (event.ctrlKey && event.key === "Enter") { document.getElementById("submit")?.click(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.querySelector("dialog[open]")) return;
  if (event.target.matches("textarea, select, input:not([type=radio], [type=checkbox])")) return;
  if (event.key === "?") { document.getElementById("help").showModal(); return; }
  if (localStorage.getItem(KEYS)) return;
  const ids = { s: "skip", n: "next", d: "distress" };
  if (/^[0-9]$/.test(event.key)) {
    if (form.querySelector("[data-rank]")) { rank(event.key); event.preventDefault(); return; }
    const input = form.querySelector(`input[name=rating][value="${event.key}"]:enabled`);
    if (!input) return;
    input.checked = true;
    input.focus();
    input.dispatchEvent(new Event("input", { bubbles: true }));
  } else if (event.key in ids) document.getElementById(ids[event.key])?.click();
  else if (event.key === "v") document.getElementById("veil")?.toggleAttribute("open");
  else return;
  event.preventDefault();
}

function begin() {
  newKey();
  pasted = Number(form.elements.pasted.value) * (document.getElementById("rationale")?.value.length ?? 0); // of a draft
  form.addEventListener("submit", submit);
  form.addEventListener("input", () => { share(); unsaved = true; clearTimeout(drafting); drafting = setTimeout(saveDraft, 1500); });
  addEventListener("pagehide", saveDraft); // whatever key or link leads away, what was filled in is kept
  const veil = document.getElementById("veil"), opened = document.getElementById("opened");
  veil?.addEventListener("toggle", () => { if (veil.open) opened.checked = true; });
  document.getElementById("rationale")?.addEventListener("paste", pasting);
  addEventListener("keydown", key);
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  const on = document.getElementById("keys-on"), help = document.getElementById("help");
  on.checked = !localStorage.getItem(KEYS);
  on.addEventListener("change", () => { if (on.checked) localStorage.removeItem(KEYS); else localStorage.setItem(KEYS, "1"); });
  document.getElementById("help-button").addEventListener("click", () => help.showModal());
  document.querySelector(".needs-script").hidden = false;
  document.getElementById("wrong")?.scrollIntoView({ block: "center" });
  watch();
  if (new URLSearchParams(location.search).has("left")) history.replaceState(null, "", location.pathname); // told once
}

for (const out of document.querySelectorAll("form[data-logout]")) {
  out.addEventListener("submit", (event) => {
    const open = Object.keys(stored()).length;
    if (open && !confirm(`${open} answer(s) have not reached the server yet and would be lost. Go on?`)) { event.preventDefault(); return; }
    for (const name of Object.keys(localStorage)) if (name.startsWith("laurel-")) localStorage.removeItem(name);
  });
}
if (form) begin();
addEventListener("online", () => flush());
flush();

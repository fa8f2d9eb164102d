"use strict";

const find = (id) => document.getElementById(id);
// The token stands behind the # of the address, which no browser sends anywhere.
const token = location.hash.slice(1);
const settings = ["steps", "anchor_every", "compare"];
let socket = null;
let state = null;
let wait = 500;

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  try {
    socket = new WebSocket(`${scheme}://${location.host}/ws`, ["sana-streaming", token]);
  } catch {
    show("lost", "the address lacks the token; open the one that the program has printed");
    return;
  }
  socket.binaryType = "blob";
  socket.onopen = () => { wait = 500; };
  socket.onmessage = (event) => (typeof event.data === "string" ? told(JSON.parse(event.data)) : draw(event.data));
  socket.onclose = () => {
    if (state?.status === "stopped") return;
    show("lost", "no connection; is the program running, and is the token right?");
    setTimeout(connect, wait);
    wait = Math.min(2 * wait, 8000);
  };
}

function send(command) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(command));
  else answer("no connection", true);
}

function told(message) {
  if (message.type === "state") return update(message);
  if (message.type === "error") return answer(message.message, true);
  answer(message.command === "set" ? "accepted; it takes effect with the next chunk" : `accepted: ${message.command}`);
}

function answer(text, wrong = false) {
  find("answer").textContent = text;
  find("answer").classList.toggle("error", wrong);
}

async function draw(blob) {
  const picture = await createImageBitmap(blob);
  const width = picture.width / 2;
  for (const [index, name] of ["source", "edit"].entries()) {
    const canvas = find(name);
    if (canvas.width !== width || canvas.height !== picture.height) {
      canvas.width = width;
      canvas.height = picture.height;
      canvas.style.aspectRatio = `${width} / ${picture.height}`;
    }
    canvas.getContext("2d").drawImage(picture, index * width, 0, width, picture.height, 0, 0, width, picture.height);
  }
  picture.close();
}

function show(status, text) {
  find("status").textContent = status;
  find("status").className = `status ${status}`;
  find("text").textContent = text;
}

const number = (value, digits = 1) => (value == null ? "–" : value.toFixed(digits));
const seconds = (value) => (value == null ? "–" : `${value.toFixed(2)} s`);
const mebibytes = (value) => (value == null ? "–" : `${Math.round(value / 2 ** 20)} MiB`);

function update(message) {
  const before = state;
  state = message;
  show(message.status, message.text);
  find("pause").textContent = message.status === "paused" ? "Resume" : "Pause";
  find("caption").textContent = `edit: ${message.prompt}${message.pending.prompt ? ` → ${message.pending.prompt}` : ""}`;
  for (const name of settings) {
    if (document.activeElement !== find(name) && message[name] !== before?.[name]) find(name).value = message[name];
  }
  const prompt = find("prompt");
  if (document.activeElement !== prompt && message.prompt !== before?.prompt) prompt.value = message.prompt;
  const { frames, fps, latency, queue, memory } = message;
  const dropped = Object.entries(frames.dropped ?? {}).map(([cause, count]) => `${count} ${cause}`).join(", ");
  numbers({
    "frames per second, in": number(fps.in),
    "frames per second, out": number(fps.out),
    "latency p50": seconds(latency.p50),
    "latency p95": seconds(latency.p95),
    "latency, most / bound": `${seconds(latency.max)} / ${seconds(latency.bound)}`,
    "frames in / out": `${frames.in} / ${frames.out}`,
    dropped: dropped || "none",
    repeated: String(frames.repeated ?? 0),
    "waiting, to edit / to show": `${queue.input} / ${queue.output}`,
    memory: mebibytes(memory.resident) + (memory.gpu ? `, GPU ${mebibytes(memory.gpu)}` : ""),
    chunk: `${message.chunk} of stream ${message.streams}`,
    late: message.late,
  });
}

function numbers(values) {
  const list = find("numbers");
  for (const [name, value] of Object.entries(values)) {
    const id = `number-${name.replace(/\W+/g, "-")}`;
    let place = find(id);
    if (!place) {
      const box = document.createElement("div");
      const term = document.createElement("dt");
      term.textContent = name;
      place = document.createElement("dd");
      place.id = id;
      box.append(term, place);
      list.append(box);
    }
    if (place.textContent !== value) place.textContent = value;
  }
}

find("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send({ command: "set", prompt: find("prompt").value });
});
find("pause").addEventListener("click", () => send({ command: state?.status === "paused" ? "resume" : "pause" }));
find("reset").addEventListener("click", () => send({ command: "reset" }));
find("stop").addEventListener("click", () => { if (confirm("End the live stream?")) send({ command: "stop" }); });
find("compare").addEventListener("change", (event) => send({ command: "set", compare: event.target.value }));
for (const name of ["steps", "anchor_every"]) {
  find(name).addEventListener("change", (event) => send({ command: "set", [name]: event.target.valueAsNumber }));
}
connect();

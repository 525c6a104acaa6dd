"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const NAME = 0, LENGTH = 1, STATUS = 2, LABEL = 3, SHARE = 4, FILE = 5, TOP = 6, TRACK = 7;
  const ROW = 32, SPARE = 8, MOST_TRACKS = 12;
  const number = new Intl.NumberFormat("en");
  const make = (tag, cls, text) => {
    const element = document.createElement(tag);
    if (cls) element.className = cls;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const bases = (n) => {
    for (const [size, unit] of [[1e9, "Gb"], [1e6, "Mb"], [1e3, "kb"]]) if (n >= size) return (n / size).toFixed(n / size < 10 ? 2 : 1) + " " + unit;
    return n + " b";
  };
  const percent = (part, all) => all ? (100 * part / all).toFixed(1) + " %" : "";

  // colours go to the most frequent classes first: ten that differ for every eye, then hues around the circle
  const palette = ["#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#ff8ab7", "#9c6b4e", "#97bbf5", "#b3a125"];
  const byCount = data.labels.map((_, i) => i).sort((a, b) => data.records[b] - data.records[a] || a - b);
  const colours = [];
  byCount.forEach((label, rank) => {
    colours[label] = palette[rank] || `hsl(${(rank * 137.5) % 360} ${rank % 2 ? 55 : 70}% ${rank % 3 ? 45 : 62}%)`;
  });

  const tiles = () => {
    const classified = data.records.reduce((a, b) => a + b, 0);
    const found = data.records.filter((n) => n).length;
    const figures = [[number.format(data.total), data.total === 1 ? "record" : "records"], [bases(data.totalBases), "in all"],
      [percent(classified, data.total), "classified"], [`${found} of ${data.labels.length}`, "classes found"]];
    data.statuses.forEach((status, i) => {
      if (status !== "ok" && data.statusRecords[i]) figures.push([number.format(data.statusRecords[i]), status.replace("_", " ")]);
    });
    for (const [figure, what] of figures) {
      const tile = make("div", "tile");
      tile.append(make("b", "", figure), make("span", "", what));
      $("tiles").append(tile);
    }
    const names = data.files.slice(0, 3).map((file) => file.split("/").pop()).join(", ");
    $("files").textContent = names + (data.fileCount > 3 ? ` and ${number.format(data.fileCount - 3)} more files` : "");
    $("files").title = data.files.join("\n");
  };

  const shareLine = (name, colour, part, most, figure, tag = "div") => {
    const line = make(tag, "share");
    const bar = make("span", "line"), fill = make("i");
    fill.style.width = `${most ? 100 * part / most : 0}%`;
    fill.style.background = colour;
    if (!part) fill.style.minWidth = "0";
    bar.append(fill);
    const label = make("span", "name", name);
    label.title = name;
    line.append(label, bar, make("span", "figure", figure));
    return line;
  };

  const composition = (what) => {
    const inBases = what === "bases";
    const counts = inBases ? data.bases : data.records, rest = inBases ? data.statusBases : data.statusRecords;
    const all = inBases ? data.totalBases : data.total;
    const lines = counts.map((n, i) => [data.labels[i], n, i, ""]).filter((line) => line[1]).sort((a, b) => b[1] - a[1]);
    data.statuses.forEach((status, i) => { if (status !== "ok" && data.statusRecords[i]) lines.push([status.replace("_", " "), rest[i], -1, String(i)]); });
    const most = Math.max(1, ...lines.map((line) => line[1]));
    $("composition").replaceChildren(...lines.map(([name, n, label, status]) => {
      const line = shareLine(name, label < 0 ? "var(--other)" : colours[label], n, most, `${inBases ? bases(n) : number.format(n)} · ${percent(n, all)}`, "button");
      line.type = "button";
      line.title = "show these records in the table";
      line.onclick = () => {
        filters.reset();
        filters.elements[label < 0 ? "status" : "label"].value = label < 0 ? status : String(label);
        select();
        $("records-title").scrollIntoView({ block: "start" });
      };
      return line;
    }));
    for (const button of document.querySelectorAll(".switch button")) button.setAttribute("aria-pressed", String(button.dataset.count === what));
  };

  const lengths = () => {
    if (!data.lengths.length) return;
    const first = data.lengths[0][0], last = data.lengths[data.lengths.length - 1][0];
    const counts = new Map(data.lengths), bins = last - first + 1, most = Math.max(...counts.values());
    const width = 420, height = 190, left = 6, bottom = 26, top = 18, step = (width - 2 * left) / Math.max(bins, 4);
    const svg = (tag, attributes, text) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text !== undefined) element.textContent = text;
      return element;
    };
    const edge = (bin) => Math.ceil(10 ** (bin / data.binsADecade) - 1e-6);
    const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Histogram of lengths" });
    for (let bin = first; bin <= last; bin++) {
      const n = counts.get(bin) || 0, tall = n ? Math.max(2, (height - bottom - top) * n / most) : 0;
      const bar = svg("rect", { x: left + (bin - first) * step + 1, y: height - bottom - tall, width: Math.max(1, step - 2), height: tall, rx: 2 });
      bar.append(svg("title", {}, `${number.format(edge(bin))} to ${number.format(Math.max(edge(bin), edge(bin + 1) - 1))} bases: ${number.format(n)} records`));
      chart.append(bar);
      if (n === most) chart.append(svg("text", { x: left + (bin - first + 0.5) * step, y: height - bottom - tall - 5, "text-anchor": "middle" }, number.format(n)));
    }
    // names at the powers of ten; where there is none, at the ends
    const decades = [];
    for (let bin = first; bin <= last + 1; bin++) if (bin % data.binsADecade === 0) decades.push(bin);
    for (const bin of decades.length ? decades : [first, last + 1]) {
      const x = left + (bin - first) * step, anchor = bin === first ? "start" : x > width - 30 ? "end" : "middle";
      chart.append(svg("text", { x, y: height - 8, "text-anchor": anchor }, bases(edge(bin)).replace(/\.0+ /, " ")));
      chart.append(svg("line", { x1: x, x2: x, y1: height - bottom, y2: height - bottom + 4 }));
    }
    chart.append(svg("line", { x1: left, x2: width - left, y1: height - bottom + 0.5, y2: height - bottom + 0.5 }));
    $("lengths").append(chart);
  };

  const draw = (canvas, row) => {
    const [starts, ends, labels, shares] = row[TRACK], ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    starts.forEach((start, i) => {
      if (labels[i] < 0) return;
      const x = Math.floor(start / row[LENGTH] * canvas.width), end = Math.floor(ends[i] / row[LENGTH] * canvas.width);
      pen.globalAlpha = 0.25 + 0.75 * Math.max(0, Math.min(1, (shares[i] - 20) / 80));
      pen.fillStyle = colours[labels[i]];
      pen.fillRect(x, 0, Math.max(1, end - x), canvas.height);
    });
    canvas.onmousemove = (event) => {
      const at = event.offsetX / width * row[LENGTH];
      let i = starts.findIndex((start, k) => at >= start && at < ends[k]);
      const tip = $("tip");
      tip.hidden = i < 0;
      if (i < 0) return;
      tip.textContent = `${number.format(starts[i])} to ${number.format(ends[i])}: ` + (labels[i] < 0 ? "no bases" : `${data.labels[labels[i]]}, ${(shares[i] / 100).toFixed(2)}`);
      tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${event.clientY + 16}px`;
    };
    canvas.onmouseleave = () => { $("tip").hidden = true; };
  };
  const summaryOf = (row) => {
    const seen = new Map();
    row[TRACK][2].forEach((label) => seen.set(label, (seen.get(label) || 0) + 1));
    return [...seen].sort((a, b) => b[1] - a[1]).map(([label, n]) => `${label < 0 ? "no bases" : data.labels[label]} ${n}`).join(", ");
  };
  const canvasOf = (row) => {
    const canvas = make("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "Windows by class: " + summaryOf(row));
    return canvas;
  };
  const drawn = [];
  const tracks = () => {
    const longest = data.rows.filter((row) => row[TRACK]).sort((a, b) => b[LENGTH] - a[LENGTH]).slice(0, MOST_TRACKS);
    if (!longest.length) return;
    $("tracks-card").hidden = false;
    const present = new Set(longest.flatMap((row) => row[TRACK][2]));
    for (const label of [...byCount.filter((label) => present.has(label)), ...(present.has(-1) ? [-1] : [])]) {
      const entry = make("span"), dot = make("i", "dot");
      dot.style.background = label < 0 ? "var(--bar)" : colours[label];
      entry.append(dot, label < 0 ? "no bases" : data.labels[label]);
      $("legend").append(entry);
    }
    for (const row of longest) {
      const line = make("div", "track"), name = make("span", "name", row[NAME] || "NA"), canvas = canvasOf(row);
      name.title = row[NAME];
      line.append(name, canvas, make("span", "size", bases(row[LENGTH])));
      $("tracks").append(line);
      drawn.push([canvas, row]);
    }
    drawn.forEach(([canvas, row]) => draw(canvas, row));
  };

  const filters = $("filters"), scroll = $("scroll"), space = $("space");
  const statusName = (row) => data.statuses[row[STATUS]];
  const columns = [["record", (row) => row[NAME], ""], ["length", (row) => row[LENGTH], "number"],
    ["prediction", (row) => row[LABEL] < 0 ? "\uffff" : data.labels[row[LABEL]], ""], ["probability", (row) => row[SHARE], "number"], ["status", statusName, ""]];
  const collator = new Intl.Collator("en", { numeric: true });
  let shown = data.rows.map((_, i) => i), sortBy = -1, falling = false, chosen = -1;

  const cells = (row) => {
    const name = make("div", "cell", row[NAME] || "NA");
    name.title = row[NAME];
    const label = make("div", "cell");
    if (row[LABEL] >= 0) {
      const dot = make("i", "dot");
      dot.style.background = colours[row[LABEL]];
      label.append(dot, data.labels[row[LABEL]]);
      label.title = data.labels[row[LABEL]];
    } else label.append(make("span", "weak", "NA"));
    return [name, make("div", "cell number", number.format(row[LENGTH])), label,
      make("div", "cell number", row[SHARE] < 0 ? "NA" : (row[SHARE] / 1e4).toFixed(4)), make("div", statusName(row) === "ok" ? "cell" : "cell weak", statusName(row).replace("_", " "))];
  };
  const render = () => {
    $("head").style.paddingRight = `${scroll.offsetWidth - scroll.clientWidth}px`;
    const from = Math.max(0, Math.floor(scroll.scrollTop / ROW) - SPARE);
    const to = Math.min(shown.length, Math.ceil((scroll.scrollTop + scroll.clientHeight) / ROW) + SPARE);
    const lines = [];
    for (let i = from; i < to; i++) {
      const line = make("div", "row");
      line.setAttribute("role", "row");
      line.setAttribute("aria-rowindex", String(i + 2));
      line.setAttribute("aria-selected", String(shown[i] === chosen));
      line.style.top = `${i * ROW}px`;
      line.dataset.record = shown[i];
      for (const cell of cells(data.rows[shown[i]])) {
        cell.setAttribute("role", "cell");
        line.append(cell);
      }
      lines.push(line);
    }
    space.replaceChildren(...lines);
  };
  const order = () => {
    if (sortBy < 0) shown.sort((a, b) => a - b);
    else {
      const key = columns[sortBy][1], numbers = columns[sortBy][2] === "number", sign = falling ? -1 : 1;
      const keys = new Map(shown.map((i) => [i, key(data.rows[i])]));
      shown.sort((a, b) => sign * (numbers ? keys.get(a) - keys.get(b) : collator.compare(keys.get(a), keys.get(b))) || a - b);
    }
    [...$("head").children].forEach((cell, i) => cell.setAttribute("aria-sort", i !== sortBy ? "none" : falling ? "descending" : "ascending"));
  };
  const select = () => {
    const values = Object.fromEntries(new FormData(filters)), name = values.name.toLowerCase();
    const least = Number(values.length) || 0, share = (Number(values.share) || 0) * 1e4 - 0.5;
    shown = [];
    data.rows.forEach((row, i) => {
      if (name && !row[NAME].toLowerCase().includes(name)) return;
      if (values.label !== "" && row[LABEL] !== Number(values.label)) return;
      if (values.status !== "" && row[STATUS] !== Number(values.status)) return;
      if (row[LENGTH] < least || (share > 0 && row[SHARE] < share)) return;
      shown.push(i);
    });
    order();
    space.style.height = `${shown.length * ROW}px`;
    scroll.style.height = `${Math.max(2, Math.min(13, shown.length)) * ROW + 2}px`;
    scroll.scrollTop = 0;
    $("table").setAttribute("aria-rowcount", String(shown.length + 1));
    $("shown").textContent = shown.length === data.rows.length ? `${number.format(shown.length)} records` : `${number.format(shown.length)} of ${number.format(data.rows.length)} records`;
    render();
  };
  const detail = (i) => {
    chosen = i;
    const row = data.rows[i], box = $("detail");
    box.hidden = false;
    box.replaceChildren(make("h3", "", row[NAME] || "NA"));
    const file = data.files[row[FILE]];
    box.append(make("p", "hint", `${number.format(row[LENGTH])} bases, ${statusName(row).replace("_", " ")}${file ? ", from " + file : ""}`));
    for (let k = 0; k < row[TOP].length; k += 2) box.append(shareLine(data.labels[row[TOP][k]], colours[row[TOP][k]], row[TOP][k + 1], 1e4, (row[TOP][k + 1] / 1e4).toFixed(4)));
    if (row[TRACK]) {
      const canvas = canvasOf(row);
      box.append(make("p", "hint", "along the sequence, 1 to " + number.format(row[LENGTH]) + ": " + summaryOf(row)), canvas);
      draw(canvas, row);
    }
    render();
  };

  tiles();
  columns.forEach(([name, , kind], i) => {
    const cell = make("div", "cell " + kind), button = make("button", "", name);
    button.type = "button";
    cell.setAttribute("role", "columnheader");
    button.onclick = () => {
      // once up, once down (numbers the other way round), then as in the file
      const first = kind === "number";
      if (sortBy !== i) [sortBy, falling] = [i, first];
      else if (falling === first) falling = !first;
      else sortBy = -1;
      order();
      render();
    };
    cell.append(button);
    $("head").append(cell);
  });
  byCount.filter((label) => data.records[label]).forEach((label) => filters.elements.label.append(new Option(`${data.labels[label]} (${number.format(data.records[label])})`, String(label))));
  data.statuses.forEach((status, i) => {
    const n = status === "ok" ? data.records.reduce((a, b) => a + b, 0) : data.statusRecords[i];
    if (n) filters.elements.status.append(new Option(`${status.replace("_", " ")} (${number.format(n)})`, String(i)));
  });
  for (const button of document.querySelectorAll(".switch button")) button.onclick = () => composition(button.dataset.count);
  composition("records");
  lengths();
  tracks();
  filters.oninput = select;
  filters.onsubmit = (event) => event.preventDefault();
  filters.onreset = () => setTimeout(select);
  scroll.onscroll = render;
  space.onclick = (event) => {
    const line = event.target.closest(".row");
    if (line) detail(Number(line.dataset.record));
  };
  window.onresize = () => {
    drawn.forEach(([canvas, row]) => draw(canvas, row));
    render();
  };
  const notes = [];
  if (data.total > data.rows.length) notes.push(`The table holds the first ${number.format(data.rows.length)} of ${number.format(data.total)} records; counts and lengths above are those of all of them.`);
  if (data.withoutTrack) notes.push(`${number.format(data.withoutTrack)} records have no track, so that the page stays small.`);
  $("note").textContent = notes.join(" ");
  $("note").hidden = !notes.length;
  select();
  document.body.dataset.ready = "true";
})();

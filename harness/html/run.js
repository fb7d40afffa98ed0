// A training run: its curves, settings, groups step by step, and the held-out questions.

const WIDE = 360,
  HIGH = 190; // of a curve's drawing, in its own units
const EDGE = {left: 46, right: 8, top: 8, bottom: 22};
const TITLES = {
  reward: "reward of sampled answers",
  "length/mean": "tokens of an answer",
  entropy: "entropy at trained tokens, in nats",
  grad_norm: "gradient norm",
  displaced: "displaced better answers, before masking",
  displaced_left: "displaced better answers, after masking",
  masked_pairs: "masked pairs",
  anchored: "groups with an anchor",
  no_signal: "groups without signal",
};
const SHARES = new Set([
  "displaced",
  "displaced_left",
  "masked_pairs",
  "anchored",
  "no_signal",
  "truncated",
  "solve_none",
  "solve_all",
  "trained_sequences",
  "clip_low",
  "clip_high",
  "masked_tokens",
]);

function runView(overview, blocks) {
  const steps = overview.metrics.step;
  const curves = [];
  if (overview.held_out.length) curves.push(heldOutCurve(overview));
  for (const name of overview.curves)
    if (overview.metrics[name]?.some(isNumber)) curves.push(metricCurve(name, overview));
  const others = Object.keys(overview.metrics).filter((name) => name !== "step" && !overview.curves.includes(name));
  return [
    element("p", {}, `${counted(steps.length, "step")} of ${overview.method}, the last one ${number(steps.at(-1))}.`),
    element("div", {class: "curves"}, curves),
    folded(`All other figures of the log (${others.length})`, () =>
      element(
        "div",
        {class: "curves"},
        others.filter((name) => overview.metrics[name].some(isNumber)).map((name) => metricCurve(name, overview)),
      ),
    ),
    element("h2", {}, "Settings that are not defaults"),
    overview.settings.length
      ? table(["setting", "value", `default of ${overview.method}`], overview.settings)
      : element("p", {}, "None: all settings are defaults."),
    element("h2", {}, "Groups"),
    overview.group_steps.length ? groupsView(overview, blocks) : element("p", {}, "The run has kept no group."),
    ...(overview.evaluation
      ? [
          element("h2", {}, `Held-out questions: ${overview.evaluation.names.join(" against ")}`),
          evaluationView(overview.evaluation, blocks, "h3"),
        ]
      : []),
  ];
}

// ---------------------------------------------------------------------------------------------------------------------
// Curves
// ---------------------------------------------------------------------------------------------------------------------

function metricCurve(name, overview) {
  const points = overview.metrics.step.map((step, n) => [step, overview.metrics[name][n]]);
  return curve(TITLES[name] ?? name, points, SHARES.has(name));
}

function heldOutCurve(overview) {
  const isShare = overview.evaluation ? overview.evaluation.benchmarks[0].verdicts : true;
  return curve(
    isShare ? "held out: accuracy, 95 % interval" : "held out: reward, 95 % interval",
    overview.held_out,
    isShare,
  );
}

// Round figures between which an axis runs: about four.
function ticks(low, high) {
  const rough = (high - low) / 3 || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let n = Math.floor(low / step + 1e-9); n * step < high + step * 0.999; n++) found.push(n * step);
  return found;
}

// A curve over steps: points are [step, value] or [step, value, low, high]; a value that is not there leaves a gap.
function curve(title, points, isShare) {
  const known = points.filter((point) => isNumber(point[1]));
  const values = known.flatMap((point) => point.slice(1).filter(isNumber));
  const marks = ticks(smallest(values), largest(values));
  const [bottom, top] = [marks[0], marks.at(-1) > marks[0] ? marks.at(-1) : marks[0] + 1];
  const [from, to] = [points[0][0], points.at(-1)[0]];
  const x = (step) => EDGE.left + (to > from ? (step - from) / (to - from) : 0.5) * (WIDE - EDGE.left - EDGE.right);
  const y = (value) => HIGH - EDGE.bottom - ((value - bottom) / (top - bottom)) * (HIGH - EDGE.top - EDGE.bottom);
  const place = (step, value) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`;

  const drawing = element("svg", {
    viewBox: `0 0 ${WIDE} ${HIGH}`,
    role: "img",
    "aria-label": described(title, known, isShare),
  });
  for (const mark of marks) {
    drawing.append(
      element("line", {class: "grid", x1: EDGE.left, x2: WIDE - EDGE.right, y1: y(mark), y2: y(mark)}),
      element("text", {class: "mark", x: EDGE.left - 5, y: y(mark) + 4, "text-anchor": "end"}, axisText(mark, isShare)),
    );
  }
  for (const [step, anchor] of [
    [from, "start"],
    [to, "end"],
  ]) {
    drawing.append(element("text", {class: "mark", x: x(step), y: HIGH - 5, "text-anchor": anchor}, `step ${step}`));
  }
  const band = known.filter((point) => isNumber(point[2]) && isNumber(point[3]));
  if (band.length > 1) {
    const there = band.map((point) => place(point[0], point[3]));
    const back = band.map((point) => place(point[0], point[2])).reverse();
    drawing.append(element("polygon", {class: "band", points: [...there, ...back].join(" ")}));
  }
  let path = "";
  let joined = false;
  for (const [step, value] of points) {
    if (isNumber(value)) path += `${joined ? "L" : "M"}${place(step, value)}`;
    joined = isNumber(value);
  }
  drawing.append(element("path", {class: "line", d: path}));
  const dot = element("circle", {class: "dot", r: 3.5, visibility: "hidden"});
  const few = points.length <= 30 ? known : [];
  drawing.append(
    ...few.map((point) => element("circle", {class: "point", r: 2, cx: x(point[0]), cy: y(point[1])})),
    dot,
  );

  const last = known.at(-1);
  const reading = element("p", {class: "reading"});
  const read = (point) => {
    const within = isNumber(point[2]) ? ` (${score(point[2], isShare)} to ${score(point[3], isShare)})` : "";
    reading.textContent = `step ${point[0]}: ${score(point[1], isShare)}${within}`;
  };
  read(last);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDE;
    let nearest = last;
    for (const point of known) if (Math.abs(x(point[0]) - at) < Math.abs(x(nearest[0]) - at)) nearest = point;
    for (const [name, value] of [
      ["cx", x(nearest[0])],
      ["cy", y(nearest[1])],
      ["visibility", "visible"],
    ])
      dot.setAttribute(name, value);
    read(nearest);
  });
  drawing.addEventListener("pointerleave", () => {
    dot.setAttribute("visibility", "hidden");
    read(last);
  });
  return element("figure", {class: "curve"}, element("figcaption", {}, title), drawing, reading);
}

// Not Math.min(...values): a long run has more values than a call can have arguments.
const smallest = (values) => values.reduce((least, value) => Math.min(least, value), Infinity);
const largest = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity);

const axisText = (value, isShare) =>
  isShare ? `${Number((100 * value).toFixed(2))} %` : Math.abs(value) < 1e-12 ? "0" : number(value);

function described(title, known, isShare) {
  const [first, last] = [known[0], known.at(-1)];
  return `${title}: ${score(first[1], isShare)} at step ${first[0]}, ${score(last[1], isShare)} at step ${last[0]}`;
}

// ---------------------------------------------------------------------------------------------------------------------
// Groups
// ---------------------------------------------------------------------------------------------------------------------

function groupsView(overview, blocks) {
  const steps = [...new Set(overview.group_steps)];
  let at = steps.length - 1;
  const list = element("div", {class: "groups"});
  const slider = element("input", {
    type: "range",
    min: 0,
    max: steps.length - 1,
    value: at,
    "aria-label": "step",
    input: () => go(Number(slider.value)),
  });
  const label = element("output", {class: "status"});
  const previous = element("button", {type: "button", click: () => go(at - 1)}, "previous");
  const next = element("button", {type: "button", click: () => go(at + 1)}, "next");

  async function go(place) {
    at = Math.max(0, Math.min(steps.length - 1, place));
    slider.value = at;
    label.textContent = `step ${steps[at]}`;
    previous.disabled = at === 0;
    next.disabled = at === steps.length - 1;
    const mine = at;
    const indices = overview.group_steps.flatMap((step, n) => (step === steps[at] ? [n] : []));
    try {
      const groups = await Promise.all(indices.map((n) => blocks.item(overview.groups, n)));
      if (mine === at) list.replaceChildren(...groups.map((group) => groupCard(group, overview)));
    } catch (error) {
      list.replaceChildren(element("p", {}, error.message));
    }
  }

  go(at);
  return element(
    "section",
    {},
    element(
      "p",
      {class: "note"},
      "Of each step the group with most masked pairs, and one with an anchor: no average groups. Answers are in order of their reward.",
    ),
    element("nav", {class: "pages", "aria-label": "steps"}, previous, slider, label, next),
    list,
  );
}

function groupCard(group, overview) {
  return element(
    "article",
    {class: "question group"},
    element("div", {class: "text problem"}, readable(group.problem)),
    element("p", {class: "right-answer"}, "Right answer: ", element("b", {}, readable(String(group.answer)))),
    element(
      "div",
      {class: "group-parts"},
      answersOf(group),
      pairsOf(group, overview.masking),
      advantagesOf(group, overview.method),
    ),
  );
}

// The answers in full, each in a line until it is opened.
function answersOf(group) {
  const rows = group.answers.map((answer, n) => {
    const made = folded("", () => element("div", {class: "text"}, readable(answer.text)));
    made.className = "answer";
    made
      .querySelector("summary")
      .append(
        element("b", {}, String(n + 1)),
        " ",
        answer.anchor
          ? element("span", {class: "cut"}, "anchor")
          : element("span", {class: "verdict"}, `reward ${number(answer.reward)}`),
        " ",
        element("span", {class: "ending"}, ending(answer.text)),
      );
    return made;
  });
  return element("div", {class: "side"}, element("h4", {}, "answers"), rows);
}

// How distinct each two are: darker is more alike; what is framed is masked.
function pairsOf(group, masking) {
  if (group.distinctiveness === null) {
    return element(
      "div",
      {},
      element("h4", {}, "distinctiveness"),
      element("p", {class: "note"}, "All rewards are equal: not scored."),
    );
  }
  const masked = new Set(group.masked_pairs.flatMap(([i, j]) => [`${i},${j}`, `${j},${i}`]));
  const reward = group.answers.map((answer) => answer.reward);
  const rows = group.distinctiveness.map((row, i) => {
    const cells = row.map((d, j) => {
      const grey = Math.round(255 * Math.min(1, Math.max(0, isNumber(d) ? d : 1) / 1.1));
      const kind = [
        masked.has(`${i},${j}`) ? "masked" : "",
        j > 0 && reward[j] !== reward[j - 1] ? "parted-left" : "",
        i > 0 && reward[i] !== reward[i - 1] ? "parted-above" : "",
      ]
        .join(" ")
        .trim();
      if (i === j) return element("td", {class: kind});
      const title = `${i + 1} and ${j + 1}: d = ${number(d)}${masked.has(`${i},${j}`) ? ", masked" : ""}`;
      const style = {background: `rgb(${grey},${grey},${grey})`, color: grey > 115 ? "#000" : "#fff"};
      return element("td", {class: kind, title, style}, isNumber(d) ? d.toFixed(2).replace(/^0/, "") : "–");
    });
    return element("tr", {}, element("th", {scope: "row"}, String(i + 1)), cells);
  });
  const head = element(
    "tr",
    {},
    element("th", {}),
    group.answers.map((_, n) => element("th", {scope: "col"}, String(n + 1))),
  );
  return element(
    "div",
    {},
    element("h4", {}, "distinctiveness d of two answers"),
    element(
      "div",
      {class: "wide", tabindex: "0", role: "region", "aria-label": "distinctiveness"},
      element("table", {class: "pairs"}, element("thead", {}, head), element("tbody", {}, rows)),
    ),
    element(
      "p",
      {class: "note"},
      `Darker is more alike. Framed: masked${masking && masking !== "none" ? `, ${masking}` : ""}. Lines part different rewards.`,
    ),
  );
}

// What GRPO would have given each answer, and what the run gave it.
function advantagesOf(group, method) {
  const most = Math.max(
    ...group.unmasked.map(Math.abs),
    ...group.answers.map((answer) => Math.abs(answer.advantage)),
    1e-9,
  );
  const bar = (value, side) =>
    element(
      "div",
      {class: "bar-line"},
      element(
        "div",
        {class: "track signed"},
        element("div", {
          class: `bar side-${side}`,
          style: {
            width: `${(50 * Math.abs(value)) / most}%`,
            left: value < 0 ? `${50 - (50 * Math.abs(value)) / most}%` : "50%",
          },
        }),
      ),
      element("span", {}, signed(value, false)),
    );
  const rows = group.answers.map((answer, n) =>
    element(
      "tr",
      {},
      element("th", {scope: "row"}, String(n + 1)),
      element("td", {}, bar(group.unmasked[n], 1), bar(answer.advantage, 0)),
    ),
  );
  return element(
    "div",
    {},
    element("h4", {}, "advantage"),
    legend([method, "GRPO (1): nothing masked, no anchor"]),
    element("table", {class: "bars"}, element("tbody", {}, rows)),
  );
}

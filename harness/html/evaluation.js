// An evaluation: its figures, and every question with its answers, filtered, searched, and page by page.

const PAGE_SIZE = 20;
const RIGHT = 1,
  TRUNCATED = 2,
  NO_ANSWER = 4; // digits of `bits`, as page_data.IN_BITS has them
const WAIT = 250; // milliseconds after the last key before a search begins

function evaluationView(overview, blocks, level = "h2") {
  const parts = [];
  const names = overview.names;
  if (overview.notes.length) {
    parts.push(
      element(
        "div",
        {class: "notes"},
        element("p", {}, "The two differ in more than the model:"),
        element(
          "ul",
          {},
          overview.notes.map((note) => element("li", {}, note)),
        ),
      ),
    );
  }
  parts.push(legend(names), figuresTable(overview), ...overview.benchmarks.map((each) => worth(each)));
  parts.push(
    folded("All figures and settings", () =>
      overview.benchmarks
        .map((each) => [element("h3", {}, each.name), allFigures(each, names), settingsTable(each, names)])
        .flat(),
    ),
  );
  parts.push(
    folded(
      "By length, level and subject",
      () => overview.benchmarks.map((each) => [element("h3", {}, each.name), ...kinds(each, names)]).flat(),
      overview.benchmarks.length === 1,
    ),
  );
  parts.push(element(level, {}, "Questions"), questionsView(overview, blocks));
  return parts;
}

// ---------------------------------------------------------------------------------------------------------------------
// Figures
// ---------------------------------------------------------------------------------------------------------------------

function figuresTable(overview) {
  const two = overview.names.length > 1;
  const heads = [
    "benchmark",
    ...(two ? ["of"] : []),
    "questions",
    "right",
    "95 %",
    "pass@k",
    "maj@k",
    "tokens",
    "cut off",
    "no answer",
  ];
  const rows = [];
  for (const each of overview.benchmarks) {
    each.sides.forEach((side, n) => {
      const own = side.figures;
      const k = side.samples;
      rows.push([
        n === 0 ? each.name : "",
        ...(two ? [element("span", {}, element("i", {class: `swatch side-${n}`}), overview.names[n])] : []),
        number(own.questions ?? each.questions),
        each.verdicts ? percent(own.accuracy) : `reward ${number(own.reward)}`,
        interval(each.verdicts ? own.interval : own.reward_interval, each.verdicts),
        `pass@${k}` in own ? `${percent(own[`pass@${k}`])} (k = ${k})` : "–",
        percent(own[`maj@${k}`]),
        number(own.length),
        percent(own.truncated),
        percent(own.no_answer),
      ]);
    });
    if (each.comparison) rows.push(differenceRow(each));
  }
  return table(heads, rows, "figures");
}

const interval = (pair, isShare) => (pair ? `${score(pair[0], isShare)} to ${score(pair[1], isShare)}` : "–");

function differenceRow(each) {
  const {mean, low, high, p, questions, won, lost} = each.comparison;
  return [
    "",
    "first − second",
    number(questions),
    signed(mean, each.verdicts),
    `${signed(low, each.verdicts)} to ${signed(high, each.verdicts)}`,
    p < 0.001 ? "p < 0.001" : `p = ${number(p)}`,
    `won ${won}`,
    `lost ${lost}`,
    "",
    "",
  ];
}

// What one question is worth, where there are few.
function worth(each) {
  if (each.questions >= 100 || !each.verdicts) return null;
  const value = (100 / each.questions).toFixed(1);
  return element(
    "p",
    {class: "note"},
    `${each.name}: with ${counted(each.questions, "question")}, one is worth ${value} points.`,
  );
}

// Every figure of the result that is a number or an interval, under its own name.
function allFigures(each, names) {
  const known = [...new Set(each.sides.flatMap((side) => Object.keys(side.figures)))];
  const shown = known.filter((name) =>
    each.sides.some((side) => isNumber(side.figures[name]) || Array.isArray(side.figures[name])),
  );
  const text = (value) => (Array.isArray(value) ? value.map(number).join(" to ") : number(value));
  return table(
    ["figure", ...names.slice(0, each.sides.length)],
    shown.map((name) => [name, ...each.sides.map((side) => text(side.figures[name]))]),
  );
}

function settingsTable(each, names) {
  const known = [...new Set(each.sides.flatMap((side) => Object.keys(side.settings)))];
  const text = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  return table(
    ["setting", ...names.slice(0, each.sides.length)],
    known.map((name) => [name, ...each.sides.map((side) => text(side.settings[name]))]),
  );
}

// Bars of accuracy, or of mean reward, by length, level and subject.
function kinds(each, names) {
  const parts = [legend(names.slice(0, each.sides.length))];
  const highest = (values) => (each.verdicts ? 1 : Math.max(...values.flat().filter(isNumber), 0));
  if (each.lengths.length) {
    const rows = each.lengths.map(([low, high, counts, values]) => [
      `${low} to ${high}`,
      values,
      `${counts.map(number).join(" and ")} answer${counts.length === 1 && counts[0] === 1 ? "" : "s"}`,
    ]);
    parts.push(
      element("h4", {}, "by tokens of an answer"),
      bars(rows, each.verdicts, highest(rows.map((row) => row[1]))),
    );
  }
  for (const name of ["levels", "subjects"]) {
    const labels = [...new Set(each.sides.flatMap((side) => side[name].map((row) => row[0])))];
    if (!labels.length) continue;
    const found = each.sides.map((side) => new Map(side[name].map(([label, count, value]) => [label, [count, value]])));
    const rows = labels.map((label) => [
      label,
      found.map((side) => side.get(label)?.[1]),
      counted(found.map((side) => side.get(label)?.[0]).find(isNumber) ?? 0, "question"),
    ]);
    parts.push(
      element("h4", {}, `by ${name.slice(0, -1)}`),
      bars(rows, each.verdicts, highest(rows.map((row) => row[1]))),
    );
  }
  if (parts.length === 1) parts.push(element("p", {class: "note"}, "The file tells no lengths, levels or subjects."));
  return parts;
}

// ---------------------------------------------------------------------------------------------------------------------
// Which questions
// ---------------------------------------------------------------------------------------------------------------------

// The filters that a benchmark can have: [name, label, does question i pass?, does an answer with these bits stand out?]
function filtersOf(each) {
  const [first] = each.sides;
  const some = (bit) => (i) => [...first.bits[i]].some((digit) => digit & bit);
  const right = (i) => [...first.bits[i]].filter((digit) => digit & RIGHT).length;
  const found = [["all", "all", () => true, () => false]];
  if (each.verdicts) {
    const wrong = (bits) => !(bits & RIGHT);
    found.push(["wrong", "with a wrong answer", (i) => right(i) < first.bits[i].length, wrong]);
    found.push(["never", "never right", (i) => right(i) === 0, wrong]);
    found.push(["always", "always right", (i) => right(i) === first.bits[i].length, () => false]);
  }
  if (first.knows.includes("truncated")) {
    found.push(["truncated", "with an answer cut off", some(TRUNCATED), (bits) => bits & TRUNCATED]);
  }
  if (first.knows.includes("extracted")) {
    found.push(["no-answer", "with no answer extracted", some(NO_ANSWER), (bits) => bits & NO_ANSWER]);
  }
  if (each.outcomes) {
    found.push(["won", "won against the other", (i) => each.outcomes[i] === "w", () => false]);
    found.push(["lost", "lost against the other", (i) => each.outcomes[i] === "l", (bits) => !(bits & RIGHT)]);
  }
  return found;
}

// The questions of one benchmark that pass filter, level and subject, in their order.
function passing(each, state) {
  const [, , passes] = filtersOf(each).find(([name]) => name === state.filter);
  const kept = [];
  for (let i = 0; i < each.questions; i++) {
    const inKind = ["level", "subject"].every((name) => state[name] === "" || each[name].of[i] === Number(state[name]));
    if (inKind && passes(i)) kept.push(i);
  }
  return kept;
}

// Does a question have the text, in lower case, anywhere?
function hasText(question, text) {
  const texts = [question.id, question.problem, question.answer, ...(question.choices ?? [])];
  for (const side of question.sides)
    if (side) texts.push(...side.texts, ...(side.extracted ?? []), ...(side.read ?? []));
  return texts.some((own) => own !== null && own !== undefined && String(own).toLowerCase().includes(text));
}

// Those of the questions that have the text, found block by block. A block in whose JSON the text does not stand is not
// read at all. `progress` hears the share that is done, and stops the search where it gives true.
async function searched(each, kept, text, blocks, progress) {
  const {first, starts} = each.blocks;
  const needle = text.toLowerCase();
  const asJson = JSON.stringify(needle).slice(1, -1);
  const wanted = new Set(kept);
  const found = [];
  for (let block = 0; block < starts.length; block++) {
    if (progress(block / starts.length, found)) return null;
    const json = await blocks.text(first + block);
    if (!json.toLowerCase().includes(asJson)) continue;
    JSON.parse(json).forEach((question, n) => {
      if (wanted.has(starts[block] + n) && hasText(question, needle)) found.push(starts[block] + n);
    });
  }
  return found;
}

// ---------------------------------------------------------------------------------------------------------------------
// The list
// ---------------------------------------------------------------------------------------------------------------------

function questionsView(overview, blocks) {
  const state = {benchmark: 0, filter: "all", level: "", subject: "", text: "", page: 0, raw: false};
  const controls = element("div", {class: "controls"});
  const status = element("p", {class: "status", role: "status"});
  const list = element("div", {class: "questions"});
  const above = element("nav", {class: "pages", "aria-label": "pages"});
  const below = element("nav", {class: "pages", "aria-label": "pages, below"});
  let shown = []; // the questions that passed, of which a page is drawn
  let turn = 0; // counts what was asked for, so that an answer that comes late is not drawn
  let waiting = null;

  const each = () => overview.benchmarks[state.benchmark];

  function drawControls() {
    const current = each();
    const change = (name) => (value) => {
      state[name] = value;
      state.page = 0;
      select();
    };
    const parts = [];
    if (overview.benchmarks.length > 1) {
      const options = overview.benchmarks.map((own, n) => [String(n), `${own.name} (${number(own.questions)})`]);
      parts.push(
        labelled(
          "benchmark",
          choice(options, String(state.benchmark), (value) => {
            Object.assign(state, {benchmark: Number(value), filter: "all", level: "", subject: "", page: 0});
            drawControls();
            select();
          }),
        ),
      );
    }
    const count = (passes) => {
      let total = 0;
      for (let i = 0; i < current.questions; i++) total += passes(i) ? 1 : 0;
      return total;
    };
    const filters = filtersOf(current).map(([name, label, passes]) => [name, `${label} (${number(count(passes))})`]);
    parts.push(labelled("show", choice(filters, state.filter, change("filter"))));
    for (const name of ["level", "subject"]) {
      if (current[name] === null || current[name].names.length < 2) continue;
      const options = [["", "all"], ...current[name].names.map((own, n) => [String(n), own])];
      parts.push(labelled(name, choice(options, state[name], change(name))));
    }
    const search = element("input", {
      type: "search",
      value: state.text,
      placeholder: "in questions and answers, as written",
      input: () => {
        clearTimeout(waiting);
        waiting = setTimeout(() => change("text")(search.value.trim()), WAIT);
      },
    });
    parts.push(labelled("search", search));
    const raw = element("input", {
      type: "checkbox",
      checked: state.raw,
      change: () => {
        state.raw = raw.checked;
        drawPage();
      },
    });
    parts.push(labelled("formulas as written", raw));
    controls.replaceChildren(...parts);
  }

  // Find what the controls ask for, and draw its first page.
  async function select() {
    const mine = ++turn;
    let found = passing(each(), state);
    if (state.text) {
      const progress = (share, so) => {
        if (mine !== turn) return true;
        status.textContent = `Searching: ${percent(share, 0)}, ${counted(so.length, "question")} found`;
        return false;
      };
      try {
        found = await searched(each(), found, state.text, blocks, progress);
      } catch (error) {
        return fail(error);
      }
      if (found === null || mine !== turn) return;
    }
    shown = found;
    await drawPage();
  }

  async function drawPage() {
    const mine = ++turn;
    const start = state.page * PAGE_SIZE;
    const current = each();
    const indices = shown.slice(start, start + PAGE_SIZE);
    try {
      const questions = await Promise.all(indices.map((i) => blocks.item(current.blocks, i)));
      if (mine !== turn) return;
      list.replaceChildren(
        ...questions.map((question, n) => questionCard(question, indices[n], current, overview.names, state)),
      );
    } catch (error) {
      return fail(error);
    }
    const to = start + indices.length;
    status.textContent = shown.length
      ? `${counted(shown.length, "question")}, ${start + 1} to ${to} shown`
      : "No question is like that.";
    drawPages(above, false);
    drawPages(below, true);
  }

  function drawPages(nav, scrolls) {
    const last = Math.max(0, Math.ceil(shown.length / PAGE_SIZE) - 1);
    const go = (page) => {
      state.page = Math.max(0, Math.min(last, page));
      drawPage();
      if (scrolls) status.scrollIntoView();
    };
    const field = element("input", {
      type: "number",
      min: 1,
      max: last + 1,
      value: state.page + 1,
      "aria-label": "page",
      change: () => go(Math.floor(Number(field.value) || 1) - 1),
    });
    nav.replaceChildren(
      element("button", {type: "button", disabled: state.page === 0, click: () => go(state.page - 1)}, "previous"),
      element("span", {}, "page ", field, ` of ${number(last + 1)}`),
      element("button", {type: "button", disabled: state.page >= last, click: () => go(state.page + 1)}, "next"),
    );
    nav.hidden = last === 0;
  }

  function fail(error) {
    status.textContent = error.message;
  }

  drawControls();
  select();
  return element("section", {}, controls, status, above, list, below);
}

// ---------------------------------------------------------------------------------------------------------------------
// A question
// ---------------------------------------------------------------------------------------------------------------------

const written = (text, state) => (state.raw ? [String(text)] : readable(String(text)));

function questionCard(question, index, each, names, state) {
  const about = [
    `#${index + 1}`,
    question.id,
    question.level !== undefined ? `level ${question.level}` : null,
    question.subject,
  ].filter((part) => part !== null && part !== undefined && part !== "");
  const outcome = {w: "won", l: "lost"}[each.outcomes?.[index]];
  const head = element(
    "header",
    {},
    element("span", {class: "about"}, about.join(" · ")),
    outcome ? element("span", {class: `outcome ${outcome}`}, outcome) : null,
  );
  const choices = (question.choices ?? []).map((option, n) =>
    element("li", {class: letter(n) === question.answer ? "gold" : ""}, `${letter(n)}. `, written(option, state)),
  );
  const gold = element(
    "p",
    {class: "right-answer"},
    "Right answer: ",
    element("b", {}, written(question.answer, state)),
  );
  const sides = question.sides.map((side, n) => sideColumn(side, n, question, index, each, names, state));
  return element(
    "article",
    {class: "question"},
    head,
    element("div", {class: "text problem"}, written(question.problem, state)),
    choices.length ? element("ul", {class: "choices"}, choices) : null,
    gold,
    element("div", {class: `sides of-${sides.length}`}, sides),
  );
}

const letter = (n) => String.fromCharCode(65 + n);

function sideColumn(side, n, question, index, each, names, state) {
  const heading = names.length > 1 ? element("h4", {}, element("i", {class: `swatch side-${n}`}), names[n]) : null;
  if (!side)
    return element("div", {class: "side"}, heading, element("p", {class: "note"}, "It does not have this question."));
  const bits = each.sides[n].bits[index];
  const right = [...bits].filter((digit) => digit & RIGHT).length;
  const total = each.verdicts ? `${right} of ${bits.length} right` : null;
  const stands = filtersOf(each).find(([name]) => name === state.filter)[3];
  let opened = false; // the first answer that the filter is about, of this evaluation
  const answers = side.texts.map((text, k) => {
    const open = n === 0 && !opened && Boolean(stands(Number(bits[k])));
    opened = opened || open;
    return answerView(side, k, Number(bits[k]), question, each, state, open || side.texts.length === 1);
  });
  return element("div", {class: "side"}, heading, total ? element("p", {class: "note"}, total) : null, answers);
}

// One answer: in its line the verdict and why, and its text when it is opened.
function answerView(side, k, bits, question, each, state, open) {
  const isRight = Boolean(bits & RIGHT);
  const verdict = each.verdicts
    ? element("span", {class: isRight ? "verdict right" : "verdict wrong"}, isRight ? "✓ right" : "✗ wrong")
    : element("span", {class: "verdict"}, `reward ${number(side.rewards[k])}`);
  const length = isNumber(side.lengths?.[k]) ? element("span", {}, counted(side.lengths[k], "token")) : null;
  const cut = bits & TRUNCATED ? element("span", {class: "cut"}, "cut off") : null;
  const made = folded(
    "",
    () => [why(side, k, question, state), element("div", {class: "text"}, written(side.texts[k], state))],
    open,
  );
  made.className = "answer";
  made
    .querySelector("summary")
    .append(verdict, " ", gist(side, k), ...[length, cut].filter(Boolean).flatMap((part) => [" ", part]));
  return made;
}

// What was extracted, in the line of a folded answer.
function gist(side, k) {
  if (!side.extracted) return element("span", {class: "ending"}, ending(side.texts[k]));
  const found = side.extracted[k];
  return element("span", {class: "gist"}, found === null ? "no answer found" : readable(String(found)));
}

function why(side, k, question, state) {
  const rows = [];
  const row = (name, value) => rows.push(element("dt", {}, name), element("dd", {}, value));
  if (side.extracted)
    row(
      "extracted",
      side.extracted[k] === null ? element("i", {}, "nothing: no answer was found") : String(side.extracted[k]),
    );
  if (side.read)
    row("read as", side.read[k] === null ? element("i", {}, "nothing: it could not be read") : String(side.read[k]));
  const place = question.choices ? question.answer.charCodeAt(0) - 65 : -1;
  const option = question.choices?.[place];
  row("compared with", option === undefined ? String(question.answer) : `${question.answer}, ${option}`);
  if (!side.extracted) row("", element("i", {}, "The file does not tell what was extracted."));
  return element("dl", {class: "why"}, rows);
}

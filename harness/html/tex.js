// Formulas as text: \frac{1}{2} is 1/2, x^{2} is x², \sqrt{2} is √2. What is not known stays as it was written.

// A command and what stands for it, in turn.
function pairsOfWords(text) {
  const words = text.trim().split(/\s+/);
  return Object.fromEntries(words.flatMap((word, n) => (n % 2 ? [] : [[word, words[n + 1]]])));
}

const wordsOf = (text) => new Set(text.trim().split(/\s+/));

const LETTERS = pairsOfWords(`
  alpha α beta β gamma γ delta δ epsilon ε varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ
  lambda λ mu μ nu ν xi ξ pi π rho ρ sigma σ tau τ upsilon υ phi φ varphi φ chi χ psi ψ omega ω Gamma Γ
  Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Phi Φ Psi Ψ Omega Ω ell ℓ hbar ℏ infty ∞ emptyset ∅ partial
  ∂ nabla ∇ degree ° circ ∘ prime ′ angle ∠ triangle △ perp ⊥ parallel ∥
`);
const SIGNS = pairsOfWords(`
  times × cdot · div ÷ pm ± mp ∓ ast ∗ star ⋆ oplus ⊕ otimes ⊗ le ≤ leq ≤ leqslant ≤ ge ≥ geq ≥ geqslant
  ≥ ne ≠ neq ≠ approx ≈ equiv ≡ cong ≅ sim ∼ propto ∝ ll ≪ gg ≫ in ∈ notin ∉ subset ⊂ subseteq ⊆ supset
  ⊃ cup ∪ cap ∩ setminus ∖ mid | nmid ∤ to → rightarrow → Rightarrow ⇒ implies ⇒ leftarrow ← Leftarrow ⇐
  leftrightarrow ↔ Leftrightarrow ⇔ iff ⇔ mapsto ↦ land ∧ wedge ∧ lor ∨ vee ∨ neg ¬ forall ∀ exists ∃
  therefore ∴ because ∵ sum ∑ prod ∏ int ∫ cdots ⋯ ldots … dots … vdots ⋮ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil
  ⌉ langle ⟨ rangle ⟩ sin sin cos cos tan tan cot cot sec sec csc csc arcsin arcsin arccos arccos arctan
  arctan log log ln ln exp exp lim lim max max min min gcd gcd lcm lcm det det deg deg
`);
Object.assign(SIGNS, {quad: "  ", qquad: "    ", bmod: " mod ", mod: " mod "});
const ESCAPED = {
  "{": "{",
  "}": "}",
  "%": "%",
  $: "$",
  "#": "#",
  "&": "&",
  _: "_",
  "|": "‖",
  ",": " ",
  ";": " ",
  ":": " ",
  "!": "",
  " ": " ",
};
const NOTHING = wordsOf(`
  left right big Big bigg Bigg bigl bigr Bigl Bigr middle displaystyle textstyle limits nolimits hline phantom
`);
const STYLED = wordsOf(`
  text textbf textit textrm mathrm mathbf mathit mathsf mathcal operatorname boldsymbol mbox emph
`);
const ABOVE = {overline: "\u0305", bar: "\u0304", hat: "\u0302", vec: "\u20D7", underline: "\u0332"}; // joined to each letter
const FRACTIONS = new Set(["frac", "dfrac", "tfrac", "cfrac"]);
const BLACKBOARD = {R: "ℝ", N: "ℕ", Z: "ℤ", Q: "ℚ", C: "ℂ"};
const SUPERSCRIPT = pairsOfWords("0 ⁰ 1 ¹ 2 ² 3 ³ 4 ⁴ 5 ⁵ 6 ⁶ 7 ⁷ 8 ⁸ 9 ⁹ + ⁺ - ⁻ ( ⁽ ) ⁾ n ⁿ i ⁱ ∘ ° ′ ′");
const SUBSCRIPT = pairsOfWords("0 ₀ 1 ₁ 2 ₂ 3 ₃ 4 ₄ 5 ₅ 6 ₆ 7 ₇ 8 ₈ 9 ₉ + ₊ - ₋ ( ₍ ) ₎ n ₙ i ᵢ j ⱼ k ₖ m ₘ x ₓ a ₐ");
const DEEPEST = 40; // nested braces; a model may write thousands, which no formula has
const BOX = ["\uE000", "\uE001"]; // around what is boxed, until `readable` has made a node of it
// Bounded in length: of many openings without an end, none must search the whole text for one.
const FORMULA = new RegExp(
  [
    String.raw`\$\$([\s\S]{1,2000}?)\$\$`,
    String.raw`\\\[([\s\S]{1,2000}?)\\\]`,
    String.raw`\\\(([\s\S]{1,2000}?)\\\)`,
    String.raw`\$(?!\s)((?:\\.|[^$\n\\]){1,500}?)(?<!\s)\$(?!\d)`, // "$5 and $6" are no formula
  ].join("|"),
  "g",
);

// A part of a fraction or under a root: in brackets unless it is one number or one word.
const bracketed = (text) => (/^(?:√?[\p{L}\d.]+|\([^()]*\))$/u.test(text.trim()) ? text.trim() : `(${text.trim()})`);

// Reads TeX from the left. In a formula ^, _ and braces have their meaning; outside only commands have.
class Formula {
  constructor(source, inFormula) {
    this.source = source;
    this.inFormula = inFormula;
    this.at = 0;
    this.depth = 0;
    this.environments = [];
  }

  // Up to the brace that closes, or to the end.
  run(closing = "") {
    let out = "";
    this.depth++;
    while (this.at < this.source.length) {
      const c = this.source[this.at];
      if (closing && c === closing) {
        this.at++;
        break;
      }
      if (c === "\\") out += this.command(out);
      else if (this.inFormula && (c === "^" || c === "_")) out += this.script(c);
      else if (this.inFormula && c === "{" && this.depth < DEEPEST) {
        this.at++;
        out += this.run("}");
      } else {
        if (this.inFormula && c === "&") out += this.isMatrix() ? ", " : "";
        else if (this.inFormula && c === "~") out += " ";
        else out += c;
        this.at++;
      }
    }
    this.depth--;
    return out;
  }

  isMatrix() {
    return (this.environments.at(-1) || "").endsWith("matrix");
  }

  blanks() {
    while (/\s/.test(this.source[this.at] || "")) this.at++;
  }

  // What a command is applied to: a group in braces, a command, or one character. It is a formula.
  argument() {
    const outside = this.inFormula;
    this.inFormula = true;
    this.blanks();
    const c = this.source[this.at] ?? "";
    let out = c;
    if (this.depth >= DEEPEST) out = "";
    else if (c === "\\") {
      this.depth++;
      out = this.command("");
      this.depth--;
    } else {
      this.at += c.length;
      if (c === "{") out = this.run("}");
    }
    this.inFormula = outside;
    return out;
  }

  // A group in square brackets, or nothing.
  option() {
    if (this.source[this.at] !== "[") return null;
    const end = this.source.indexOf("]", this.at);
    if (end < 0) return null;
    const text = this.source.slice(this.at + 1, end);
    this.at = end + 1;
    return text;
  }

  script(sign) {
    this.at++;
    const text = this.argument();
    const characters = sign === "^" ? SUPERSCRIPT : SUBSCRIPT;
    if (text && [...text].every((c) => c in characters)) return [...text].map((c) => characters[c]).join("");
    return sign + (text.length > 1 ? `(${text})` : text);
  }

  command(before) {
    const start = this.at;
    const name = /^[A-Za-z]+/.exec(this.source.slice(start + 1, start + 24))?.[0];
    if (name === undefined) {
      const c = this.source[start + 1];
      this.at = start + 2;
      if (c === "\\" && this.inFormula) return this.isMatrix() ? "; " : "\n";
      if (c !== undefined && c in ESCAPED && (this.inFormula || !/[\s,;:!]/.test(c))) return ESCAPED[c];
      this.at = Math.min(this.at, this.source.length);
      return this.source.slice(start, this.at);
    }
    this.at = start + 1 + name.length;
    if (Object.hasOwn(LETTERS, name)) return LETTERS[name];
    if (Object.hasOwn(SIGNS, name)) return SIGNS[name];
    if (NOTHING.has(name)) {
      if (/^(left|right|middle)$/.test(name) && this.source[this.at] === ".") this.at++;
      return "";
    }
    if (FRACTIONS.has(name)) {
      const text = `${bracketed(this.argument())}/${bracketed(this.argument())}`;
      return /\d$/.test(before) ? ` ${text}` : text;
    }
    if (name === "sqrt") {
      const root = this.option();
      const sign = root === null ? "√" : root === "3" ? "∛" : `${[...root].map((c) => SUPERSCRIPT[c] ?? c).join("")}√`;
      return sign + bracketed(this.argument());
    }
    if (name === "binom" || name === "dbinom") return `C(${this.argument()}, ${this.argument()})`;
    if (name === "boxed" || name === "fbox") return BOX[0] + this.argument() + BOX[1];
    if (name === "mathbb") return [...this.argument()].map((c) => BLACKBOARD[c] ?? c).join("");
    if (Object.hasOwn(ABOVE, name)) return [...this.argument()].map((c) => c + ABOVE[name]).join("");
    if (STYLED.has(name)) return this.argument();
    if (name === "pmod") return ` (mod ${this.argument()})`;
    if (name === "begin" || name === "end") return this.environment(name === "begin");
    return this.source.slice(start, this.at);
  }

  environment(begins) {
    const name = this.argument();
    if (begins) {
      this.environments.push(name);
      if (name === "array" || name === "tabular") this.argument();
      return this.isMatrix() ? "[" : "";
    }
    const wasMatrix = this.isMatrix();
    this.environments.pop();
    return wasMatrix ? "]" : "";
  }
}

const untexed = (source, inFormula) => new Formula(source, inFormula).run();

// The text with its formulas readable, as nodes; what is boxed, the answer as a rule, stands in a frame.
function readable(text) {
  const plain = text.replace(/[\uE000\uE001]/g, "\uFFFD");
  let out = "";
  let end = 0;
  for (const found of plain.matchAll(FORMULA)) {
    out += untexed(plain.slice(end, found.index), false);
    out += untexed(found[1] ?? found[2] ?? found[3] ?? found[4], true);
    end = found.index + found[0].length;
  }
  out += untexed(plain.slice(end), false);
  const nodes = [];
  let inside = 0;
  for (const part of out.split(/([\uE000\uE001])/)) {
    if (part === BOX[0]) inside++;
    else if (part === BOX[1]) inside--;
    else if (part) nodes.push(inside > 0 ? element("b", {class: "boxed"}, part) : part);
  }
  return nodes;
}

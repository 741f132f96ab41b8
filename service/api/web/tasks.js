// The tasks: their fields, examples, the body of their request, and which field an error is about.

const lines = (text = "") => text.split("\n").map((line) => line.trim()).filter(Boolean);
const number = (text) => (text === "" || text === undefined ? undefined : Number(text));
const chosen = (value) => value || undefined;

/** A label as the API takes it: its name alone where there is nothing else. */
function asLabel({ name, description, examples }) {
  const label = { name: name.trim() };
  if (description?.trim()) label.description = description.trim();
  if (lines(examples).length) label.examples = lines(examples);
  return Object.keys(label).length === 1 ? label.name : label;
}

export const isUsed = ({ name, description, examples }) => [name, description, examples].some((text) => text?.trim());

const TRUNCATIONS = ["right", "left", "head_tail"];
const model = { name: "model", kind: "model", more: true };
const method = { name: "method", kind: "select", more: true, options: ["automatic", "choice", "embedding"] };
const cut = (...others) => ({ name: "truncation", kind: "select", more: true, options: [...TRUNCATIONS, ...others] });
const topK = (value) => ({ name: "top_k", kind: "number", value, more: true, min: 1, max: 100 });

const shared = (values) => ({
  model: chosen(values.model),
  truncation: values.truncation === "right" ? undefined : chosen(values.truncation),
});
const asked = ({ method }) => (method === "automatic" ? undefined : chosen(method));
const can = (task) => (served) => served.filter((model) => model.tasks.includes(task));
const reads = (kind) => (served) => can("mrc")(served).filter((model) => (model.kind === "question-answering") === kind);

export const TASKS = [
  {
    id: "classify",
    path: "v1/classify",
    models: can("classify"),
    fields: [
      { name: "text", kind: "text" },
      { name: "labels", kind: "labels" },
      { name: "question", kind: "line", word: "questionOptional" },
      { name: "multi_label", kind: "check", more: true },
      method,
      { name: "min_score", kind: "number", more: true, min: 0, max: 1, step: 0.05 },
      { name: "none_label", kind: "line", more: true },
      cut("window"),
      model,
    ],
    examples: [
      { title: "包裹三天了还没动静", text: "包裹三天了还没动静", labels: ["退款", "物流", "发票", "投诉"] },
      {
        title: "这家餐厅的菜很好吃",
        text: "这家餐厅的菜很好吃，服务也周到。",
        labels: ["这是一条好评", "这是一条差评"],
      },
      {
        title: "央行下调存款准备金率",
        text: "央行宣布下调存款准备金率0.5个百分点，释放长期资金约1万亿元",
        labels: [
          { name: "财经", description: "银行、股市和宏观经济", examples: "沪指收涨1%\n美联储宣布加息" },
          { name: "体育", description: "比赛、球队和运动员", examples: "国足客场两球取胜\n女排夺冠" },
          { name: "娱乐", description: "电影、音乐和明星", examples: "新片票房破十亿" },
          { name: "科技", description: "手机、互联网和人工智能", examples: "新一代芯片发布" },
        ],
        question: "下面新闻属于哪一个类别？",
      },
      {
        title: "手机拍照清晰，电池不耐用",
        text: "手机拍照清晰，但是电池不耐用。",
        labels: ["拍照", "电池", "屏幕"],
        multi_label: true,
      },
      {
        title: "你好，在吗？",
        text: "你好，在吗？",
        labels: ["退款", "物流", "发票"],
        min_score: "0.8",
        none_label: "其他",
      },
    ],
    body: (values) => ({
      inputs: values.text ?? "",
      ...labelsOf(values),
      ...shared(values),
    }),
    places: [[/^inputs/, "text"], [/^label_set/, "labels"], [/^hierarchy/, "labels"]],
  },
  {
    id: "similarity",
    path: "v1/similarity",
    models: can("similarity"),
    fields: [{ name: "source", kind: "line" }, { name: "candidates", kind: "text" }, method, cut(), model],
    examples: [
      {
        title: "怎么更换绑定的手机号？",
        source: "怎么更换绑定的手机号？",
        candidates: "绑定的手机号如何修改\n忘记密码怎么办\n手机号换了能改绑吗",
      },
      { title: "讲个笑话给我听", source: "讲个笑话给我听", candidates: "给我讲个笑话吧\n明天会下雨吗" },
    ],
    body: (values) => ({
      source: values.source ?? "",
      candidates: lines(values.candidates),
      method: asked(values),
      ...shared(values),
    }),
    places: [],
  },
  {
    id: "answerTask",
    path: "v1/mrc",
    models: reads(false),
    fields: [
      { name: "passage", kind: "text" },
      { name: "question", kind: "line" },
      { name: "choices", kind: "text" },
      cut("window"),
      model,
    ],
    examples: [
      {
        title: "他们先去哪儿？",
        passage: "女：周末我们去哪儿？男：先去图书馆还书，然后去看电影。",
        question: "他们先去哪儿？",
        choices: "图书馆\n饭馆\n机场",
      },
      {
        title: "小王几点去上班？",
        passage: "小王每天早上六点起床，先跑步半个小时，然后吃早饭，七点半去上班。",
        question: "小王几点去上班？",
        choices: "六点\n六点半\n七点半",
      },
    ],
    body: (values) => ({
      inputs: [{ passage: values.passage ?? "", question: values.question ?? "", choices: lines(values.choices) }],
      ...shared(values),
    }),
    places: [[/\.passage/, "passage"], [/\.question/, "question"], [/\.choices|^inputs/, "choices"]],
  },
  {
    id: "extract",
    path: "v1/mrc",
    models: reads(true),
    fields: [{ name: "passage", kind: "text" }, { name: "question", kind: "line" }, topK("3"), model],
    examples: [
      {
        title: "他们先去哪儿？",
        passage: "女：周末我们去哪儿？男：先去图书馆还书，然后去看电影。",
        question: "他们先去哪儿？",
      },
    ],
    body: (values) => ({
      inputs: [{ passage: values.passage ?? "", question: values.question ?? "" }],
      top_k: number(values.top_k),
      ...shared(values),
    }),
    places: [[/\.question/, "question"], [/^inputs/, "passage"]],
  },
  {
    id: "nli",
    path: "v1/nli",
    models: can("nli"),
    fields: [{ name: "premise", kind: "text" }, { name: "hypothesis", kind: "line" }, cut(), model],
    examples: [
      { title: "有人在演奏乐器。", premise: "一个男人在公园里弹吉他。", hypothesis: "有人在演奏乐器。" },
      { title: "公园里一个人也没有。", premise: "一个男人在公园里弹吉他。", hypothesis: "公园里一个人也没有。" },
    ],
    body: (values) => ({ inputs: [[values.premise ?? "", values.hypothesis ?? ""]], ...shared(values) }),
    places: [[/^inputs\[0\]\[1\]/, "hypothesis"], [/^inputs/, "premise"]],
  },
  {
    id: "fill-mask",
    path: "v1/fill-mask",
    models: can("fill-mask"),
    fields: [{ name: "text", kind: "text", word: "maskText" }, topK("5"), model],
    examples: [
      { title: "这家酒店的服务很[MASK]。", text: "这家酒店的服务很[MASK]。" },
      { title: "今天天气很[MASK]，我们去公[MASK]吧。", text: "今天天气很[MASK]，我们去公[MASK]吧。" },
    ],
    body: (values) => ({ inputs: values.text ?? "", top_k: number(values.top_k), model: chosen(values.model) }),
    places: [[/^inputs/, "text"]],
  },
  {
    id: "embed",
    path: "v1/embed",
    models: can("embed"),
    fields: [{ name: "texts", kind: "text" }, cut("window"), model],
    examples: [
      {
        title: "今天天气怎么样？",
        texts: "今天天气怎么样？\n明天会下雨吗\n怎么更换绑定的手机号？\n绑定的手机号如何修改",
      },
    ],
    body: (values) => ({ inputs: lines(values.texts), ...shared(values) }),
    places: [[/^inputs/, "texts"]],
  },
];

function labelsOf(values) {
  const own = values.labelsFrom ?? "own";
  const common = { min_score: number(values.min_score), none_label: chosen(values.none_label?.trim()) };
  if (own === "head") return common;
  const asking = {
    question: chosen(values.question?.trim()),
    multi_label: values.multi_label || undefined,
    method: asked(values),
  };
  if (own.startsWith("set:")) return { label_set: own.slice(4), ...asking, ...common };
  return { labels: (values.labels ?? []).filter(isUsed).map(asLabel), ...asking, ...common };
}

/** The name of the field that a path of the API's errors is about, as `inputs[0].text`; null for none. */
export function fieldOf(task, path) {
  const place = task.places.find(([pattern]) => pattern.test(path));
  const name = place ? place[1] : path.split(/[.[]/)[0];
  return task.fields.some((field) => field.name === name) ? name : null;
}

/** The body of a request, without what was left out. */
export function bodyOf(task, values) {
  return JSON.parse(JSON.stringify(task.body(values)));
}

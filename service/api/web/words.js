// What the page says, in Chinese and in English.

const WORDS = {
  skip: ["跳到输入区", "Skip to the form"],
  task: ["任务", "Task"],
  input: ["输入", "Input"],
  answer: ["结果", "Answer"],
  request: ["用代码发送同一请求", "The same request in code"],
  load: ["实时负载", "Load now"],
  run: ["运行", "Run"],
  cancel: ["取消", "Cancel"],
  shortcut: ["Ctrl + Enter 运行", "Ctrl + Enter runs it"],
  api: ["接口文档", "API reference"],
  other: ["English", "中文"],
  examples: ["示例：", "Try"],
  options: ["更多选项", "Options"],
  connecting: ["正在连接服务……", "Connecting to the server…"],
  computing: ["正在计算……", "Computing…"],
  seconds: ["{0} 秒", "{0} s"],
  cancelled: ["已取消。", "Cancelled."],
  ready: ["点击“运行”查看结果。", "Run the request to see its answer here."],
  done: ["完成，用时 {0} 毫秒。", "Done in {0} ms."],
  serving: ["{0}，运行于 {1}", "{0} on {1}"],
  noTasks: ["当前没有模型可以使用。", "No model is served yet."],

  classify: ["文本分类", "Classify"],
  similarity: ["相似度", "Similarity"],
  answerTask: ["选择题", "Multiple choice"],
  extract: ["抽取答案", "Find the answer"],
  nli: ["推理", "Inference"],
  "fill-mask": ["完形填空", "Fill mask"],
  embed: ["向量", "Embed"],
  classifyHint: ["给出您自己的标签，不需要训练。", "Name your own labels. No training is needed."],
  similarityHint: ["比较一个句子与若干候选句的意思。", "Compare the meaning of one text with several candidates."],
  answerTaskHint: ["根据短文，从选项中选出答案。", "Choose the option that answers a question about a passage."],
  extractHint: ["在短文中找到回答问题的原文。", "Find the words of a passage that answer a question."],
  nliHint: ["判断能否由前提推出假设。", "Tell whether a hypothesis follows from a premise."],
  "fill-maskHint": ["猜出 [MASK] 处的字。", "Guess the token at each [MASK]."],
  embedHint: ["把每行文字变成一个向量，并两两比较。", "Turn each line into a vector, and compare them."],

  text: ["文本", "Text"],
  maskText: ["含 [MASK] 的文本", "Text with [MASK]"],
  labels: ["标签", "Labels"],
  labelsOwn: ["自定义标签", "My own labels"],
  labelsSet: ["标签集：{0}（{1} 个标签）", "Label set: {0} ({1} labels)"],
  labelsHead: ["模型自带的标签", "The model's own labels"],
  labelsFrom: ["标签来源", "Labels from"],
  labelName: ["标签 {0}", "Label {0}"],
  labelAdd: ["添加标签", "Add a label"],
  labelMore: ["说明和例句", "Describe"],
  labelDescription: ["说明", "Description"],
  labelExamples: ["例句（每行一句）", "Examples, one a line"],
  labelRemove: ["删除标签 {0}", "Remove label {0}"],
  andMore: ["等 {0} 个", "and {0} more"],
  question: ["问题", "Question"],
  questionOptional: ["问题（可选）", "Question (optional)"],
  passage: ["短文", "Passage"],
  choices: ["选项（每行一个）", "Choices, one a line"],
  source: ["句子", "Text"],
  candidates: ["候选句（每行一句）", "Candidates, one a line"],
  premise: ["前提", "Premise"],
  hypothesis: ["假设", "Hypothesis"],
  texts: ["文本（每行一条）", "Texts, one a line"],
  multi_label: ["可以同时有多个标签", "Several labels may apply"],
  method: ["方法", "Method"],
  min_score: ["最低分数（0 到 1）", "Least score, 0 to 1"],
  none_label: ["低于最低分数时的标签", "Label below the least score"],
  truncation: ["文本过长时", "A text that is too long"],
  top_k: ["返回个数", "Number of results"],
  model: ["模型", "Model"],
  automatic: ["自动", "Automatic"],
  blend: ["两个模型共同判断", "Two models together"],
  choice: ["选择模型", "Choice model"],
  embedding: ["向量模型", "Embedding model"],
  classifier: ["微调的分类模型", "Fine-tuned classifier"],
  right: ["截去末尾", "Cut its end"],
  left: ["截去开头", "Cut its beginning"],
  head_tail: ["截去中间", "Cut its middle"],
  window: ["分窗口全部读完", "Read all of it, in windows"],

  decidedLabel: ["判定", "Decided"],
  decidedNone: ["都不符合：最高分低于最低分数", "None: the best score is below the least score"],
  decidedAmbiguous: ["难以区分：前几名分数太近", "Ambiguous: the best labels are too close"],
  calibrated: ["已校准", "calibrated"],
  entailment: ["蕴含", "entailment"],
  neutral: ["中立", "neutral"],
  contradiction: ["矛盾", "contradiction"],
  maskNumber: ["第 {0} 个 [MASK]", "[MASK] number {0}"],
  noAnswer: ["短文中没有答案", "The passage has no answer"],
  noAnswerScore: ["无答案的分数", "Score of no answer"],
  models: ["模型", "Model"],
  tokens: ["词元", "Tokens"],
  tokensLabels: ["{0}，另有标签 {1}", "{0}, and {1} of labels"],
  truncated: ["文本太长，已被截断；可在“更多选项”中改为分窗口读。", "The text was cut to fit; Options has other ways to read it."],
  whole: ["全部读完", "read whole"],
  windows: ["窗口", "Windows"],
  windowOf: ["第 {0} / {1} 个，字符 {2} 至 {3}", "{0} of {1}, characters {2} to {3}"],
  windowsRead: ["共 {0} 个", "{0} read"],
  labelSet: ["标签集", "Label set"],
  version: ["{0}，第 {1} 版", "{0}, version {1}"],
  dimensions: ["{0} 维", "{0} dimensions"],
  cosine: ["两两余弦", "Cosine of each pair"],
  vectorOf: ["向量的前 {0} 维：{1}", "First {0} numbers of the vector of: {1}"],
  time: ["时间", "Time"],
  tokenize: ["分词", "tokenize"],
  queue: ["排队", "queue"],
  compute: ["计算", "compute"],
  network: ["网络与其他", "network and rest"],
  ms: ["{0} 毫秒", "{0} ms"],

  copy: ["复制", "Copy"],
  copied: ["已复制", "Copied"],
  copyFailed: ["已选中，请按 Ctrl + C", "Selected: press Ctrl + C"],
  language: ["语言", "Language"],
  keyPlaceholder: ["把 erl_... 换成您的密钥。", "Put your key in place of erl_..."],
  rate: ["请求/秒", "requests/s"],
  p95: ["p95 耗时", "p95 time"],
  queued: ["排队行数", "rows queued"],
  batch: ["行/批次", "rows/batch"],
  loadWindow: ["最近 {0} 秒", "Last {0} s"],
  loadGone: ["暂时读不到负载。", "The load cannot be read now."],
  loadTrend: ["请求速率曲线", "Requests per second over time"],

  keyTitle: ["该服务需要密钥", "This server asks for an API key"],
  keyAbout: [
    "密钥只保存在当前标签页中，关闭后即删除；不会出现在网址和代码里。",
    "It stays in this tab and is gone when the tab is closed. It appears in no address and in no code below.",
  ],
  keyLabel: ["API 密钥", "API key"],
  keyUse: ["使用该密钥", "Use this key"],
  keyForget: ["删除密钥", "Forget the key"],
  keyButton: ["密钥", "Key"],
  keyWrong: ["服务不认识这个密钥，请检查后重试。", "The server does not know this key. Check it, and try again."],
  keyScope: ["这个密钥没有推理权限（infer），请换一个。", "This key may not run tasks (scope infer). Use another one."],
  keyMissing: ["需要密钥才能继续。", "A key is needed to go on."],
  keyEnter: ["输入密钥", "Enter a key"],
  retry: ["重试", "Try again"],
  retryIn: ["约 {0} 秒后可以重试。", "It may work in about {0} s."],

  problem: ["请求未能完成", "The request was not answered"],
  wayInvalid: ["请修改标出的内容后重新运行。", "Change what is marked, and run it again."],
  wayModel: ["请换一个模型，或改为“自动”。", "Choose another model, or Automatic."],
  wayLabelSet: ["请换一个标签集，或使用自定义标签。", "Choose another label set, or your own labels."],
  wayLarge: ["请缩短文本，或减少条数。", "Send a shorter text, or fewer of them."],
  wayBusy: ["服务繁忙，请稍后重试。", "The server is busy. Try again in a moment."],
  wayLimit: ["您的密钥已达到限额，请稍后重试。", "Your key is at its limit. Try again in a moment."],
  wayStarting: ["服务正在启动或停止，请稍后重试。", "The server is starting or stopping. Try again in a moment."],
  wayDeadline: ["计算超过了时限。请缩短文本，或稍后重试。", "It took longer than allowed. Send a shorter text, or try again later."],
  wayUnreachable: ["连接不上服务。请检查网络，以及服务是否在运行。", "The server cannot be reached. Check the network, and that it is running."],
  wayProxy: ["服务前的代理返回了错误。请检查代理的路径和超时。", "Something before the server answered in its place. Check the path and the time-outs of the proxy."],
  wayServer: ["服务内部出错，日志中有详情。", "The server failed. Its log has the details."],
};

const STORED = "erlangshen.language";
let index = preferred() === "zh" ? 0 : 1;

function preferred() {
  try {
    const chosen = localStorage.getItem(STORED);
    if (chosen) return chosen;
  } catch {
    // Storage is forbidden: the browser's language decides each time.
  }
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function switchLanguage() {
  index = 1 - index;
  try {
    localStorage.setItem(STORED, index === 0 ? "zh" : "en");
  } catch {
    // As above.
  }
}

export const language = () => (index === 0 ? "zh-CN" : "en");

/** The text of a name, with {0}, {1}, ... replaced. */
export function say(name, ...values) {
  return WORDS[name][index].replace(/\{(\d)\}/g, (_, number) => values[number]);
}

export const has = (name) => name in WORDS;

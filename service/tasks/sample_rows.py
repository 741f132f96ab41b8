"""Rows of known texts as the tasks make them, on which the fixed scales of quantised maps are measured.

The texts were written for this project: short and long, formal and colloquial, with digits, Latin letters and an emoji.
Cached weights hold scales of the texts that were here when they were converted: with other texts, increase `FORMAT` in
`checkpoints/converted.py`.
"""

from __future__ import annotations

from service.domain import Cls, Encoding
from service.tasks.rows import encode_rows
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice, encode_choices

TEXTS = (
    "好",
    "？",
    "OK",
    "快递到了没有",
    "今天的天气真不错，我们去公园散步吧。",
    "这家酒店的房间很干净，服务员也很热情，下次还会再来。",
    "手机屏幕有划痕，客服一直不回复，太失望了！",
    "国家统计局公布：前三季度国内生产总值同比增长5.2%，消费对经济增长的贡献进一步提高。",
    "请问信用卡逾期三天会影响征信吗？",
    "怎么才能把分期的账单改成一次性还清",
    "中国队以3比1战胜对手，提前一轮锁定小组第一。",
    "The new release fixes a memory leak in the HTTP client and adds support for Python 3.12.",
    "小说讲述了一位老渔民独自出海，与一条巨大的马林鱼搏斗三天三夜的故事，赞美了人不可被打败的精神。",
    "股市午后跳水，沪指跌逾1%，两市超四千只个股下跌。",
    "本文提出一种基于图神经网络的推荐算法，在三个公开数据集上的实验表明，该方法的召回率比基线提高了百分之四点七。",
    "订单号20231105-8842，收货地址：世纪大道100号，联系电话13800000000。",
    "孩子发烧到39度，应该先吃退烧药还是直接去医院？",
    "他昨天说要来，结果又没来，你说气不气人😂",
    "合同约定甲方应于收到发票后十五个工作日内支付尾款，逾期按日万分之五支付违约金。",
    "明朝永乐年间，郑和率船队七下西洋，最远到达非洲东海岸。",
)
OPTIONS = (
    ("正面", "负面"),
    ("体育", "财经", "娱乐", "科技", "教育", "军事", "游戏"),
    ("相似", "不相似"),
    ("是", "不是", "不确定"),
    ("退款", "物流查询", "投诉", "咨询价格", "其他"),
)


def sample_rows(model: TextModel) -> list[Encoding]:
    """A row of each text, rows of pairs, and choices where the model can choose."""
    inputs: list[tuple[str, ...]] = [(text,) for text in TEXTS]
    inputs += zip(TEXTS[4::4], TEXTS[5::4], strict=True)
    rows = encode_rows(model, inputs, Cls(), "right")
    if model.can_choose:
        choices = [Choice(OPTIONS[index % len(OPTIONS)], (text,)) for index, text in enumerate(TEXTS)]
        rows += encode_choices(model, choices, "right")
    return rows

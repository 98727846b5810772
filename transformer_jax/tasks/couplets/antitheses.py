"""Couplets from a lexicon of antitheses of our own: a set that needs no download and has one right answer each.

An upper line is put together from words by a pattern; the lower line answers each word with its opposite. No character
stands in two antitheses, so that each has exactly one opposite, and couplets keep the rules: lines of one length, with
punctuation at the same places, characters repeated at the same places, none shared. Words at even places and at the end
of a line are of opposite tone (平仄), the upper line ending oblique and the lower one level. What a line says is no
matter: the set shows that a model learns to answer in form, for words in combinations that it has not seen.
"""

import random
import re
from functools import cache

from transformer_jax.data.readers import is_held_out
from transformer_jax.system import UserError

SPLITS = {"train": 20_000, "validation": 500, "test": 500}
"""Split to its number of couplets."""

LEXICON = {
    # Modifiers of one character. They stand at odd places only, where tones are free.
    "M": (
        "春秋 青黄 红绿 黑白 金玉 银铜 碧朱 翠紫 高低 长短 大小 新旧 老少 远近 深浅 清浊 明暗 冷暖 凉热 轻重 浓淡 干湿 "
        "早晚 朝暮 古今 南北 左右 千万 半全 单双 孤群 阴阳 真假 美丑 香臭 苦甜 粗细 贫富 贵贱 奇偶 曲直 斜正 方圆 硬软 "
        "强弱 忙闲 生熟 肥瘦 快慢 静动 善恶 刚柔 雅俗 内外 宽窄 厚薄 稀密 空满 枯荣 浮沉"
    ),
    # Nouns of one character; from here on the first side is level, the other oblique.
    "N": (
        "天地 山水 花月 云雨 星日 风雪 江海 林野 泉瀑 霞雾 霜露 松柳 梅杏 桃李 莲藕 荷桂 兰蕙 烟火 溪谷 峰岭 沙土 鱼鸟 "
        "龙虎 蜂蚁 莺燕 牛马 鸡犬 猿鹤 鸿雁 书画 琴剑 诗酒 茶饭 歌舞 门户 楼殿 桥路 舟轿 人物 宾主 师友 君我 儿女 夫妇 "
        "钟鼓 弦管 衣帽 刀笔 心胆 眉眼 头脚 身影 魂梦 声色 情意 城市 村镇 园院 窗幕 灯镜 帘榻 砖瓦 墙壁 车轨 帆桨 湖港 "
        "洲岛 岩洞 苔藓 芽叶 枝果 根本 瓜豆 麻麦 丝布 禾稻"
    ),
    "L": "中下 前后 间上 边里 旁底",  # where: places after a noun
    "V": (
        "来去 开谢 升降 飞走 鸣啸 吟唱 流止 行坐 离聚 吹打 摇定 燃灭 迎拒 听看 闻见 思想 言笑 啼叫 归返 留弃 收放 藏现 "
        "栽种 眠醒 愁喜 悲乐 成败 兴废 赢负 浇灌 垂举 穿过 遮盖 缠绕 翻覆 添减"
    ),
    "A": "皆尽 还更 都总 常永 同共 犹渐 才又 先再 曾已 相互 频屡 徐骤 齐竞",  # adverbs
    # Words of two characters: things, then what they do or are like.
    "T": (
        "鸳鸯鹦鹉 琵琶唢呐 珊瑚玛瑙 芙蓉芍药 蔷薇茉莉 枇杷橄榄 芭蕉苜蓿 蜘蛛蝌蚪 蜻蜓蚂蚱 珍珠琥珀 胭脂翰墨 乾坤宇宙 "
        "轩辕社稷 昆仑巴蜀 潇湘岱岳 邯郸汴洛 骆驼豺豹"
    ),
    "P": (
        "逍遥慷慨 朦胧灿烂 玲珑窈窕 参差错落 峥嵘坎坷 徘徊踊跃 徜徉眺望 蹉跎奋斗 潺湲浩荡 斑斓璀璨 缤纷馥郁 喧哗寂寞 "
        "从容慌乱 苍茫辽阔 蜿蜒陡峭 谦虚谨慎 辛勤懒惰 翱翔奔跑"
    ),
}
"""Word class to its antitheses, each written as one word after the other, of the same length."""

PATTERNS = (
    "MNMN", "MNP", "NLAV", "TP", "N1N1N2N2",
    "MNMNV", "MNNLV", "NVNAV", "TPV", "N1VN1AV", "PMNV",
    "MNMNMNV", "MNMNNLV", "MNVN1N1AV", "TMNPV", "N1N1MNMNV",
    "NLAV，NLAV", "MNMNV，NVNAV", "N1LMNV，N1LMNV",
)  # fmt: skip
"""Word classes of 4, 5 or 7 characters, or of two clauses; a digit marks places that hold one and the same word."""

_VALIDATION_PERCENT, _HELD_OUT_PERCENT = 5.0, 10.0  # of all couplets


@cache
def antitheses(split: str) -> tuple[tuple[str, str], ...]:
    """Couplets of a split as (upper, lower): the same everywhere, all different, no upper line in two splits.

    Raises:
        UserError: for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"antitheses have no split {split!r}, only {', '.join(SPLITS)}.")
    rng = random.Random(f"antitheses {split}")  # noqa: S311  (data, not a secret)
    couplets: dict[str, str] = {}
    while len(couplets) < SPLITS[split]:
        upper, lower = _compose(PATTERNS[_below(rng, len(PATTERNS))], rng)
        if split_of(upper) == split:
            couplets[upper] = lower
    return tuple(couplets.items())


@cache
def words(word_class: str) -> tuple[tuple[str, str], ...]:
    """The antitheses of a word class of `LEXICON`."""
    return tuple((both[: len(both) // 2], both[len(both) // 2 :]) for both in LEXICON[word_class].split())


def split_of(upper: str) -> str:
    """The split that an upper line belongs to, by a fixed hash of it."""
    if is_held_out(upper, _VALIDATION_PERCENT):
        return "validation"
    return "test" if is_held_out(upper, _HELD_OUT_PERCENT) else "train"


def _compose(pattern: str, rng: random.Random) -> tuple[str, str]:
    """Upper and lower line of a pattern; places that it does not make one hold words of different antitheses."""
    slots = re.findall(r"[A-Z]\d?|，", pattern)
    chosen = {"，": ("，", "，")}
    taken: set[tuple[str, str]] = set()
    sides: list[tuple[str, str]] = []
    # Places without a digit are words of their own.
    names = [slot if len(slot) > 1 or slot == "，" else f"{slot} at {place}" for place, slot in enumerate(slots)]
    for name in names:
        if name not in chosen:
            free = [antithesis for antithesis in words(name[0]) if antithesis not in taken]
            first, second = free[_below(rng, len(free))]
            taken.add((first, second))
            # The last word of the upper line is its oblique side; others may be either.
            swap = name == names[-1] or rng.random() < 0.5
            chosen[name] = (second, first) if swap else (first, second)
        sides.append(chosen[name])
    upper, lower = ("".join(side) for side in zip(*sides, strict=True))
    return upper, lower


def _below(rng: random.Random, bound: int) -> int:
    """An index below a bound; of `random`, only `random()` promises the same numbers in every version of Python."""
    return int(rng.random() * bound)

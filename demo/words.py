"""Word lists of the demo's task language. Data only."""

OPPOSITES: tuple[tuple[str, str], ...] = tuple(
    (left, right)
    for left, right in (
        pair.split("/")
        for pair in (
            "hot/cold big/small fast/slow up/down left/right day/night open/closed happy/sad light/dark "
            "wet/dry hard/soft old/young rich/poor full/empty early/late high/low near/far loud/quiet "
            "strong/weak thick/thin clean/dirty true/false win/lose push/pull buy/sell start/stop "
            "inside/outside above/below before/after first/last north/south east/west love/hate "
            "brave/afraid sharp/blunt smooth/rough deep/shallow wide/narrow sweet/sour cheap/expensive "
            "easy/difficult safe/dangerous always/never more/less"
        ).split()
    )
)

CAPITALS: tuple[tuple[str, str], ...] = tuple(
    (country, capital)
    for country, capital in (
        pair.split("/")
        for pair in (
            "France/Paris Germany/Berlin Italy/Rome Spain/Madrid Portugal/Lisbon Austria/Vienna "
            "Greece/Athens Poland/Warsaw Norway/Oslo Sweden/Stockholm Finland/Helsinki Denmark/Copenhagen "
            "Ireland/Dublin England/London Belgium/Brussels Hungary/Budapest Russia/Moscow Ukraine/Kyiv "
            "Turkey/Ankara Egypt/Cairo Kenya/Nairobi Ghana/Accra Senegal/Dakar Morocco/Rabat "
            "Tunisia/Tunis Japan/Tokyo China/Beijing Korea/Seoul India/Delhi Nepal/Kathmandu "
            "Thailand/Bangkok Vietnam/Hanoi Indonesia/Jakarta Iran/Tehran Iraq/Baghdad Syria/Damascus "
            "Lebanon/Beirut Canada/Ottawa Cuba/Havana Peru/Lima Chile/Santiago Colombia/Bogota "
            "Ecuador/Quito Jamaica/Kingston Australia/Canberra"
        ).split()
    )
)

NOUNS: tuple[str, ...] = tuple(
    (
        "apple bird boat book bread car cat chair cloud coat cow cup desk dog door duck egg fish flag "
        "flower fox frog garden glass goat hat horse house key king lake lamp leaf lemon lion map milk "
        "moon mouse nest ocean orange owl paper pen piano pig plate queen rabbit rain river road rose "
        "salt ship shoe snow spoon star stone sun table tiger train tree truck water window wolf"
    ).split()
)

CHINESE: tuple[tuple[str, str], ...] = (
    ("red", "紅"), ("blue", "藍"), ("green", "綠"), ("white", "白"), ("black", "黑"), ("yellow", "黃"),
    ("cat", "貓"), ("dog", "狗"), ("fish", "魚"), ("bird", "鳥"), ("horse", "馬"), ("cow", "牛"),
    ("sun", "太陽"), ("moon", "月亮"), ("star", "星星"), ("water", "水"), ("rain", "雨"), ("snow", "雪"),
    ("tree", "樹"), ("flower", "花"), ("book", "書"), ("pen", "筆"), ("door", "門"), ("road", "路"),
    ("car", "車"), ("boat", "船"), ("rice", "飯"), ("tea", "茶"), ("one", "一"), ("two", "二"),
    ("three", "三"), ("ten", "十"), ("hand", "手"), ("heart", "心"), ("fire", "火"), ("mountain", "山"),
)  # fmt: skip

THINGS: tuple[str, ...] = tuple(
    (
        "food film book music hotel room story game concert coffee lesson weather trip dinner soup "
        "play song service show party holiday painting meal garden museum"
    ).split()
)
DEGREES: tuple[str, ...] = ("", "very ", "really ", "so ", "quite ", "truly ")
PRAISE: tuple[str, ...] = tuple(
    (
        "good great wonderful lovely excellent delightful charming perfect beautiful amazing "
        "fantastic pleasant brilliant superb"
    ).split()
)
BLAME: tuple[str, ...] = tuple(
    (
        "bad awful terrible boring horrible dull ugly poor disappointing dreadful nasty miserable "
        "annoying disgusting"
    ).split()
)

WHO_ZH: tuple[str, ...] = ("我", "你", "他", "她", "我們", "他們", "老師", "媽媽", "爸爸", "朋友")
DEGREES_ZH: tuple[str, ...] = ("很", "非常", "真的很", "太", "好", "特別")
GLAD_ZH: tuple[str, ...] = ("開心", "高興", "快樂", "幸福", "滿意", "興奮", "喜歡", "舒服")
SAD_ZH: tuple[str, ...] = ("難過", "生氣", "傷心", "失望", "痛苦", "無聊", "害怕", "討厭")

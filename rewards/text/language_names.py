"""Codes and names of the languages that can be identified."""

from __future__ import annotations

from functools import cache
from typing import Any

from rewards.text.patterns import Pattern

# The identifier's code; the codes of ISO 639-2 and 639-3; names in English; names in the language itself.
_TABLE = """
af afr | afrikaans
am amh | amharic | አማርኛ
ar ara arb | arabic, modern standard arabic | العربية, عربي
as asm | assamese | অসমীয়া
az aze azj azb | azerbaijani, azeri | azərbaycan, azərbaycanca, azərbaycan dili
be bel | belarusian, belorussian | беларуская
bg bul | bulgarian | български
bn ben | bengali, bangla | বাংলা
br bre | breton | brezhoneg
bs bos | bosnian | bosanski
ca cat | catalan, valencian | català
cs ces cze | czech | čeština, česky, český
cy cym wel | welsh | cymraeg
da dan | danish | dansk
de deu ger | german, austrian german, swiss german | deutsch
el ell gre | greek, modern greek | ελληνικά
en eng | english, american english, british english, us english, uk english
eo epo | esperanto
es spa | spanish, castilian, mexican spanish, latin american spanish | español, castellano
et est ekk | estonian | eesti, eesti keel
eu eus baq | basque | euskara
fa fas per pes prs | persian, farsi, dari | فارسی
fi fin | finnish | suomi
fr fra fre | french, canadian french | français
fy fry | frisian, western frisian | frysk
ga gle | irish, irish gaelic | gaeilge
gd gla | scottish gaelic | gàidhlig
gl glg | galician | galego
gu guj | gujarati | ગુજરાતી
ha hau | hausa
he heb iw | hebrew | עברית
hi hin | hindi | हिन्दी, हिंदी
hr hrv | croatian | hrvatski
ht hat | haitian, haitian creole | kreyòl ayisyen
hu hun | hungarian | magyar
hy hye arm | armenian | հայերեն
id ind | indonesian | bahasa indonesia
ig ibo | igbo
is isl ice | icelandic | íslenska
it ita | italian | italiano
ja jpn | japanese | 日本語, 日语, 日文
jv jav jw | javanese | basa jawa
ka kat geo | georgian | ქართული
kk kaz | kazakh | қазақ, қазақша, қазақ тілі
km khm | khmer, cambodian | ខ្មែរ, ភាសាខ្មែរ
kn kan | kannada | ಕನ್ನಡ
ko kor | korean | 한국어, 조선말, 韩语, 韩文
ku kur kmr | kurdish, kurmanji | kurdî
ky kir | kyrgyz, kirghiz | кыргызча, кыргыз тили
la lat | latin | lingua latina
lg lug | ganda, luganda
ln lin | lingala
lo lao | lao, laotian | ລາວ, ພາສາລາວ
lt lit | lithuanian | lietuvių
lv lav lvs | latvian | latviešu
mg mlg plt | malagasy
mk mkd mac | macedonian | македонски
ml mal | malayalam | മലയാളം
mn mon khk | mongolian | монгол
mr mar | marathi | मराठी
ms msa may zsm | malay | bahasa melayu
my mya bur | burmese, myanmar | မြန်မာ, မြန်မာဘာသာ
ne nep npi | nepali | नेपाली
nl nld dut | dutch, flemish | nederlands, vlaams
no nor nob nb | norwegian, norwegian bokmål, norwegian bokmal, bokmål, bokmal | norsk, norsk bokmål
nn nno | norwegian nynorsk, nynorsk | norsk nynorsk
om orm gaz | oromo | afaan oromoo
or ori ory | odia, oriya | ଓଡ଼ିଆ
pa pan | punjabi, panjabi | ਪੰਜਾਬੀ
pl pol | polish | polski
ps pus pbt | pashto, pushto | پښتو
pt por | portuguese, brazilian portuguese, european portuguese | português
qu que quz | quechua | runa simi
ro ron rum mo | romanian, moldovan, moldavian | română
ru rus | russian | русский, русский язык
sa san | sanskrit | संस्कृतम्
si sin | sinhala, sinhalese | සිංහල
sk slk slo | slovak | slovenčina, slovensky
sl slv | slovenian, slovene | slovenščina
so som | somali | soomaali
sq sqi alb als | albanian | shqip
sr srp | serbian | српски, srpski
sv swe | swedish | svenska
sw swa swh | swahili | kiswahili
ta tam | tamil | தமிழ்
te tel | telugu | తెలుగు
th tha | thai | ไทย, ภาษาไทย
tl tgl fil | tagalog, filipino | wikang filipino
tr tur | turkish | türkçe
ug uig | uyghur, uighur | ئۇيغۇرچە
uk ukr | ukrainian | українська
ur urd | urdu | اردو
uz uzb uzn | uzbek | oʻzbek, o'zbek, oʻzbekcha, o'zbekcha
vi vie | vietnamese | tiếng việt
xh xho | xhosa | isixhosa
yo yor | yoruba | yorùbá
zh zho chi cmn | chinese, mandarin, mandarin chinese, simplified chinese, traditional chinese | 中文, 汉语, 漢語, 华语, 華語, 普通话
zh zh | simplified mandarin | 简体中文, 繁体中文, 繁體中文, 国语
zu zul | zulu | isizulu
ace ace | achinese, acehnese
an arg | aragonese | aragonés
ary ary | moroccan arabic
arz arz | egyptian arabic
ba bak | bashkir | башҡортса
bcl bcl | central bikol, bikol
crh crh | crimean tatar
dz dzo | dzongkha | རྫོང་ཁ
ext ext | extremaduran | estremeñu
fo fao | faroese | føroyskt
fuv fuv | nigerian fulfulde, fulfulde
gcf gcf | guadeloupean creole french, guadeloupean creole
gcr gcr | guianese creole french, guianese creole
gom gom | goan konkani, konkani
grc grc | ancient greek
gug gug gn grn | paraguayan guaraní, guarani, guaraní
guw guw | gun
hbo hbo | ancient hebrew, biblical hebrew
kab kab | kabyle | taqbaylit
kik kik ki | kikuyu
lb ltz | luxembourgish | lëtzebuergesch
lij lij | ligurian
ltg ltg | latgalian
mt mlt | maltese | malti
nso nso | pedi, northern sotho, sepedi
oc oci | occitan | occitan
pcm pcm | nigerian pidgin
rw kin | kinyarwanda | ikinyarwanda
sdh sdh | southern kurdish
se sme | northern sami | davvisámegiella
sn sna | shona | chishona
st sot | southern sotho, sotho | sesotho
tg tgk | tajik | тоҷикӣ
tk tuk | turkmen | türkmençe
tt tat | tatar | татар, татарча
uzs uzs | southern uzbek
vec vec | venetian | vèneto
vo vol | volapük
wa wln | walloon | walon
wuu wuu | wu chinese, wu, shanghainese | 吴语, 吳語
yue yue | cantonese, yue chinese | 粤语, 粵語, 广东话, 廣東話
"""
_TAG = Pattern(  # BCP 47: language, extended language, script, region, variants; or a locale of POSIX
    r"([a-z]{2,3})(?:[-_]([a-z]{3}))?(?:[-_][a-z]{4})?(?:[-_](?:[a-z]{2}|\d{3}))?(?:[-_](?:[a-z\d]{5,8}|\d[a-z\d]{3})){0,3}(?:\.[a-z\d-]{1,12})?"
)
_WITH_COUNTRY = Pattern(r"(.{2,40}?)\s*[(（][^()（）]{2,30}[)）]")


def language_code(name: Any) -> str | None:
    """Returns the identifier's code of a language; `None` for any other value.

    It may be a code of ISO 639 of two or three letters (`de`, `deu`, `ger`), or a tag of BCP 47 (`de-AT`, `zh-Hant-TW`). It may be
    the name in English or in the language itself (`German`, `Deutsch`), also with a country in parentheses. Case does not count.
    """
    if not isinstance(name, str) or len(name) > 60:
        return None
    known, plain = _codes(), " ".join(name.casefold().split())
    if plain in known:
        return known[plain]
    if tag := _TAG.fullmatch(plain):
        return known.get(tag[2] or "", known.get(tag[1]))
    named = _WITH_COUNTRY.fullmatch(plain)
    return known.get(named[1]) if named else None


@cache
def _codes() -> dict[str, str]:
    """Returns the identifier's code by code and name."""
    codes = {}
    for line in _TABLE.strip().splitlines():
        short, _, names = line.partition(" | ")
        code, *others = short.split()
        for each in (code, *others, *(name.strip() for name in names.replace("|", ",").split(","))):
            codes[each.casefold()] = code
    return codes

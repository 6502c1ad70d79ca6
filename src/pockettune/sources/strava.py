"""Runs from a Strava bulk export: the zip, its folder, or its activities.csv.

Reads the user's own export only (Strava's API terms forbid training on API data). Of its 87 to 101 columns six
are read; names, notes, gear, weights and media never leave `read_export`.
"""

import csv
import html
import io
import lzma
import re
import unicodedata
import warnings
import zipfile
import zlib
from datetime import datetime
from pathlib import Path

MAX_BYTES = 500_000_000  # twenty years of daily activities make a table of about 5 MB
FASTEST, SLOWEST = 120, 1200  # seconds a kilometre: outside 2 to 20 minutes it was no run

_LANGUAGES = ("English", "German", "French", "Spanish", "Chinese")
_COLUMNS = {  # as each language's export writes them; translation keys of broken headers end in the English words
    "date": ("activity date", "aktivitätsdatum", "date de l'activité", "fecha de la actividad", "活动日期"),
    "type": ("activity type", "aktivitätsart", "type d'activité", "tipo de actividad", "活动类型"),
    "elapsed": ("elapsed time", "verstrichene zeit", "temps écoulé", "tiempo transcurrido", "全程耗时"),
    "moving": ("moving time", "bewegungszeit", "durée de déplacement", "tiempo en movimiento", "移动时间"),
    "distance": ("distance", "distanz", "distance", "distancia", "距离"),
    "climb": ("elevation gain", "höhenzunahme", "dénivelé positif", "desnivel positivo", "累计爬升"),
}
_BROKEN = {"date": "date", "type": "type", "start date": "date", "sport type": "type"}
_TYPES = {
    "Run": ("run", "lauf", "course à pied", "carrera", "carrera a pie", "跑步"),
    "Trail Run": ("trail run", "trailrun", "traillauf", "trail", "carrera de montaña", "carrera por montaña", "越野跑"),
    "Virtual Run": ("virtual run", "virtualrun", "virtueller lauf", "course à pied virtuelle", "course virtuelle")
    + ("carrera virtual", "carrera a pie virtual", "虚拟跑步"),
}
_MONTHS = ("jan ene", "feb fev", "mar mrz", "apr avr abr", "may mai", "jun juin", "jul juil")
_MONTHS += ("aug aou ago", "sep", "oct okt", "nov", "dec dez dic")


def read_export(path: str | Path) -> list[dict]:
    """Read the runs of an export, oldest first.

    Each is `{"date" (UTC), "activity", "distance_km", "pace" (moving time), "elevation_gain_m", "recent_runs"}`,
    the last being distance and pace of the two runs before it, newest first. Runs without a distance or a time,
    or with a pace outside 2 to 20 min/km, are left out and counted in a warning. Raises ValueError with the cause
    and what to do, never with a row's content.
    """
    table = csv.reader(io.StringIO(_text(Path(path).expanduser()), newline=""))
    csv.field_size_limit(10_000_000)  # a description may be long
    try:
        header = next(table, [])
        columns, language = _find_columns(header)
        runs, skipped = [], 0
        for line in table:
            cells = {key: line[i].strip() if i < len(line) else "" for key, i in columns.items()}
            activity = next((t for t, names in _TYPES.items() if cells["type"].casefold() in names), None)
            if activity is None:
                continue
            if run := _run(cells, activity, decimal_comma=language in ("German", "French", "Spanish")):
                runs.append(run)
            else:
                skipped += 1
    except csv.Error as error:
        raise ValueError(
            f"activities.csv is damaged near line {table.line_num} ({error}): download the export again"
        ) from None
    if skipped:
        warnings.warn(
            f"left out {skipped} of {skipped + len(runs)} runs: no distance, no time, or a pace outside 2-20 min/km",
            stacklevel=2,
        )
    if not runs:
        raise ValueError("the export holds no runs that can be used: only Run, Trail Run and Virtual Run are read")
    runs.sort(key=lambda run: run[0])
    records = [record for _, record in runs]
    short = [{"distance_km": r["distance_km"], "pace": r["pace"]} for r in records]
    return [{**record, "recent_runs": short[max(0, i - 2) : i][::-1]} for i, record in enumerate(records)]


def _text(path: Path) -> str:
    """The text of activities.csv, wherever it is."""
    how = "give Strava's export zip, its folder or its activities.csv (Settings > My Account > Download or Delete Your Account)"
    if path.is_dir():
        path = path / "activities.csv"
    if not path.is_file():
        raise ValueError(f"found no {path.name}: {how}")
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = [n for n in archive.namelist() if re.fullmatch(r"(?!__MACOSX)([^/]+/)?activities\.csv", n)]
                if not names:
                    raise ValueError(f"{path.name} holds no activities.csv: {how}")
                with archive.open(names[0]) as member:
                    raw = member.read(MAX_BYTES + 1)  # whatever size the zip claims
        except (zipfile.BadZipFile, EOFError, RuntimeError, OSError, zlib.error, lzma.LZMAError) as error:
            raise ValueError(
                f"{path.name} is not a readable zip ({type(error).__name__}): download the export again"
            ) from None
    else:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"activities.csv in {path.name} has more than {MAX_BYTES:,} bytes: {how}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            "activities.csv is not UTF-8: use the file as Strava made it, not one saved by a spreadsheet"
        ) from None
    if not text.strip():
        raise ValueError(f"activities.csv is empty: {how}")
    return text


def _find_columns(header: list[str]) -> tuple[dict[str, int], str]:
    """Where the six columns are, by name and occurrence, and the language they are in."""
    names = [_clean(cell) for cell in header]
    found: dict[str, int] = {}
    language = "English"
    for key, spellings in _COLUMNS.items():
        places = [i for i, name in enumerate(names) if name in spellings or _BROKEN.get(name) == key]
        if places:
            found[key] = places[0]
            if key == "date" and names[places[0]] in spellings:
                language = _LANGUAGES[spellings.index(names[places[0]])]
        if key == "distance" and len(places) > 1:
            found["metres"] = places[1]
    if "metres" in found:
        # In every language moving time stands before the metres and the climb three columns after, whatever their names.
        found.setdefault("moving", found["metres"] - 1)
        found.setdefault("climb", found["metres"] + 3)
    missing = {"date", "type", "elapsed", "distance"} - found.keys()
    if missing:
        if header and header[0].strip().isdigit():
            raise ValueError(
                "activities.csv has no header line (it begins with an activity): download the export again"
            )
        shown = ", ".join(name[:40] for name in names[:12]) or "nothing"
        raise ValueError(
            f"cannot find the columns for {', '.join(sorted(missing))}; the header begins: {shown}. Known are exports in "
            f"{', '.join(_LANGUAGES)}: set Strava's display language to one of them and export again"
        )
    return found, language


def _clean(cell: str) -> str:
    """A column name without mark-up, in lower case; of an untranslated one, the words of its key."""
    name = html.unescape(re.sub(r"<[^>]*>", "", cell)).strip("\ufeff \t\r\n").replace("\u2019", "'")
    if name.lower().startswith("translation missing"):
        name = re.split(r"[.:]", name)[-1].replace("_", " ")
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()


def _run(cells: dict[str, str], activity: str, decimal_comma: bool) -> tuple[datetime, dict] | None:
    when = _when(cells["date"])
    number = {key: _number(value, decimal_comma) for key, value in cells.items() if key not in ("date", "type")}
    metres = number["metres"] if number.get("metres") is not None else 1000 * (number["distance"] or 0)
    seconds = number.get("moving") or number["elapsed"]
    if not seconds or round(metres / 1000, 2) <= 0 or not FASTEST <= seconds / metres * 1000 <= SLOWEST:
        return None
    minutes, rest = divmod(int(seconds / metres * 1000 + 0.5), 60)
    return when, {
        "date": f"{when:%Y-%m-%d}",
        "activity": activity,
        "distance_km": round(metres / 1000, 2),
        "pace": f"{minutes}:{rest:02d}/km",
        "elevation_gain_m": int((number.get("climb") or 0) + 0.5),
    }


def _number(text: str, decimal_comma: bool) -> float | None:
    """A number as some language writes it, None where there is none.

    >>> _number("1,234.5", False), _number("1.234,5", True), _number("5,29", True), _number("1 234,5", True), _number("", True)
    (1234.5, 1234.5, 5.29, 1234.5, None)
    """
    text = re.sub(r"[\s'\u2019]", "", text)
    if "," in text and "." in text:
        text = text.replace(",", "") if text.rindex(".") > text.rindex(",") else text.replace(".", "").replace(",", ".")
    elif decimal_comma or not re.fullmatch(r"\d{1,3}(,\d{3})+", text):
        text = text.replace(",", ".")
    else:
        text = text.replace(",", "")
    return float(text) if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text) else None


def _when(text: str) -> datetime:
    """A date and time in any of the five languages.

    >>> [f"{_when(t):%Y-%m-%d %H:%M}" for t in ("May 29, 2022, 3:53:35 PM", "01.08.2025, 17:00:00", "3 févr. 2024 à 07:05:00")]
    ['2022-05-29 15:53', '2025-08-01 17:00', '2024-02-03 07:05']
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    clock = re.search(r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(?:([ap])\.?\s?m\b)?", plain)
    hour, minute, second = (int(g or 0) for g in clock.group(1, 2, 3)) if clock else (0, 0, 0)
    if clock and (clock[4] or re.search("[上下]午", plain)):
        hour = hour % 12 + (12 if clock[4] == "p" or "下午" in plain else 0)
    day = plain[: clock.start()] if clock else plain
    if match := re.search(r"(\d{4})[-年]\s*(\d{1,2})[-月]\s*(\d{1,2})", day):
        year, month, number = (int(g) for g in match.groups())
    elif match := re.search(r"(\d{1,2})\.\s*(\d{1,2})\.\s*(\d{4})", day):
        number, month, year = (int(g) for g in match.groups())
    else:
        word = re.search(r"(?!de\b)[a-z]{3,}", day)
        digits = re.findall(r"\d+", day)
        known = [i for i, names in enumerate(_MONTHS, 1) if word and word[0].startswith(tuple(names.split()))]
        if not known or sorted(map(len, digits)) not in ([1, 4], [2, 4]):
            shape = re.sub(r"[^\W\d]", "a", re.sub(r"\d", "9", text))[:30]
            raise ValueError(
                f"a run's date has an unknown form, {shape!r} (9 for digits, a for letters): export again in English"
            )
        month, (number, year) = known[0], sorted(map(int, digits))
    try:
        return datetime(year, month, number, hour, minute, second)
    except ValueError:
        raise ValueError("a run's date is in no calendar (such as 31 February): download the export again") from None

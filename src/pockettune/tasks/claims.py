"""Which numbers and comparisons in an English text about a run do not follow from the run."""

import re
from datetime import date
from statistics import mean

_SMALL = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: i for i, word in enumerate(_SMALL + _TEENS, 1)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_WORDS |= {"zero": 0, "half a": 0.5, "hundred": 100}

_PER_KM = r"\s?(?:/|per|a|an|each)\s?(?:km|k\b|kilomet\w+)"
_UNITS = {  # in the order they are tried
    "pace gap": rf"(?:s|secs?|seconds?){_PER_KM}",
    "pace minutes": rf"(?:min|mins|minutes?){_PER_KM}",
    "climb rate": rf"(?:m|met(?:re|er)s?){_PER_KM}",
    "km/h": r"km/h|kph|kilomet\w+ (?:per|an) hour",
    "km": r"km|k|kilomet(?:re|er)s?",
    "seconds": r"s|secs?|seconds?",
    "minutes": r"min|mins|minutes?",
    "hours": r"h|hours?",
    "m": r"m|met(?:re|er)s?",
    "percent": r"%|percent|per cent",
    "times": r"x|times|-?fold",
    "runs": r"runs?|outings?|efforts?|attempts?|entries",
}
_UNIT = "|".join(f"(?P<u{i}>{pattern})" for i, pattern in enumerate(_UNITS.values()))
_AFTER_WORD = "|".join(pattern for unit, pattern in _UNITS.items() if unit != "times")
_NUMBER = re.compile(rf"(?<![\w.:])(\d+(?:[.,]\d+)?)(?:(?:[\s-]?(?:{_UNIT}))(?![\w/])|(?P<ordinal>st|nd|rd|th)\b)?")
_PACE_UNIT = r"\s*(?:/\s?km|(?:min\w*\s?)?(?:per|a|/)\s?k\w*|min/km|pace)"
_CLOCK = re.compile(rf"(?<![\d.:])(?:(\d+):)?(\d{{1,2}}):(\d\d)(?![\d:])({_PACE_UNIT})?")

_COMPARED = re.compile(r"\b((?:fast|quick|slow|long|short|furth|farth)(?:er|est))\b")
_AMOUNT_BEFORE = re.compile(rf"(?P<n>\d+(?:\.\d+)?)\s?(?:{_UNIT})\s+(?:\w+\s+)?$")
_AMOUNT_AFTER = re.compile(rf"\s+by\s+(?P<n>\d+(?:\.\d+)?)\s?(?:{_UNIT})")
_SAME = re.compile(
    r"\b(?:same|identical|equal|unchanged|matching|matched)\b[^.;]{0,25}?\b(?P<what>pace|speed|distance|length)\b"
    r"|\b(?P<of>pace|speed|distance|length)(?= of the (?:last|previous|prior))"
)
_RATIO = re.compile(
    r"\b(half|halved|twice|double|doubled|triple|tripled)\b"
    r"(?=[^.;]{0,24}\b(?:distance|length|as long|as far|last|previous|average))"
)
_MIXED = re.compile(  # a pace in kilometres, a distance in seconds
    r"\b(?:pace|speed) (?:is|was|of)(?: \w+)? [\d.]+ (?:km|m|minutes)\b(?!/)"
    r"|\bdistance (?:is|was|of)(?: \w+)? [\d.:]+ ?(?:s/km|/km)"
)
_BEYOND = re.compile(  # what the input cannot tell
    r"\b(\w+est ever|than ever|\w+est (?:\w+ )?of the (?:year|season|month|week)|(?:second|third) run"
    r"|hillier|flatter|steeper|hilliest|flattest|steepest|personal best|personal record|p\.?b\.?|p\.?r\.?)\b"
)
_GREW = r"increased|grew|rose|widened|stretched|extended|lengthened|expanded"
_SHRANK = r"decreased|shrank|shrunk|fell|dropped|declined|reduced|trimmed|shortened|cut"
_CHANGES = {  # the same claims in other words; a pace that was "cut" may be either, so it holds for neither
    "longer": rf"(?:distance|length)(?: \w+)? (?:{_GREW})|(?:extra|added|more|additional) (?:distance|leg|length|kilomet\w+)",
    "shorter": rf"(?:distance|length)(?: \w+)? (?:{_SHRANK})|(?:less|reduced) (?:distance|length)",
    "faster": r"(?:pace|speed)(?: \w+)? (?:improved|quickened)|speed(?: \w+)? (?:increased|rose)",
    "slower": r"pace(?: \w+)? (?:slipped|sagged|slowed|suffered)|speed(?: \w+)? (?:decreased|fell|dropped|declined)|reduced speed",
    "": rf"pace(?: \w+)? (?:{_GREW}|{_SHRANK})",
}
_CHANGES = {word: re.compile(rf"\b(?:{pattern})\b") for word, pattern in _CHANGES.items()}
_EARLIER = re.compile(
    r"\b(last|previous|prior|before|earlier|recent|than|from|after|average|mean|ago|yesterday|usual|both|since"
    r"|against|versus|vs)\b"
)
# The end of a comparison, or of a ranking: it speaks of earlier runs but lends no value of theirs to this one.
_REFERENCE = re.compile(
    r"\b(?:than|as) (?:the |your )?(?:last|previous|recent|prior) (?:run|time|one|outing|average|mean)\b(?!'s| \(|,? (?:of|at)\b)"
    r"|\bof the last \w+(?: runs)?|\bover (?=\d)"
)
_BEFORE_LAST = re.compile(r"\b(run|one|outing|time) before last\b|\btwo runs ago\b|\bbefore that\b")
_OF_EARLIER = re.compile(  # a clause whose subject is an earlier run
    r"\s*(?:the |your )?(?:last|previous|prior) (?:run|time|outing|one)(?= (?:was|were|had|came|went|at|in)\b| ?\d|$)"
)
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october"]
_MONTHS += ["november", "december"]
_MONTH_BEFORE, _MONTH_AFTER = rf"\b({'|'.join(_MONTHS)}) $", rf" (of )?({'|'.join(_MONTHS)})\b"


def unsupported(text: str, run: dict) -> list[str]:
    """List the numbers and comparisons in a text that do not follow from the run.

    Allowed are the run's values, those of recent runs where the sentence speaks of them, differences, sums,
    means and ratios, rounded as a person would round. What is in doubt counts as unsupported.

    >>> run = {"date": "2024-01-07", "activity": "Run", "distance_km": 3.08, "pace": "5:54/km",
    ...        "elevation_gain_m": 4, "recent_runs": [{"distance_km": 3.06, "pace": "6:14/km"}]}
    >>> unsupported("3.08 km at 5:54/km, 20 s/km faster than last time.", run)
    []
    >>> unsupported("You ran 5.29 km at an 18:10 pace, slower than last time.", run)
    ['18:10 pace', '5.29 km', 'slower']
    """
    found = []
    for sentence in re.split(r"(?<=[.!?;])\s+", _digits(text.lower())):
        found += _false_numbers(sentence, run) + _false_dates(sentence, run) + _false_comparisons(sentence, run)
    return found


def seconds_per_km(pace: str) -> int:
    """Read a pace such as "5:54/km"."""
    minutes, seconds = pace.removesuffix("/km").split(":")
    return 60 * int(minutes) + int(seconds)


def _series(run: dict) -> dict[str, tuple[float, list[float]]]:
    """Distance (km), pace (s/km) and time (s) of the run, each with those of the recent runs, newest first."""
    kms = [r["distance_km"] for r in run["recent_runs"]]
    paces = [seconds_per_km(r["pace"]) for r in run["recent_runs"]]
    km, pace = run["distance_km"], seconds_per_km(run["pace"])
    return {
        "km": (km, kms),
        "pace": (pace, paces),
        "time": (km * pace, [d * p for d, p in zip(kms, paces, strict=True)]),
    }


def _with_mean(values: list[float]) -> list[float]:
    return [*values, mean(values)] if values else []


def _statable(run: dict, unit: str, clause: str) -> list[float]:
    """Every value of a unit that a clause may state; values of earlier runs only where it speaks of those runs."""
    series = _series(run)
    own = {name: [value] for name, (value, _) in series.items()}
    gaps = {
        name: [abs(value - v) for v in _with_mean(values)] + [abs(a - b) for a in values for b in values if a != b]
        for name, (value, values) in series.items()
    }
    if _EARLIER.search(_REFERENCE.sub(" ", clause)):
        lent = {name: _spoken_of(clause, values) for name, (_, values) in series.items()}
        own = {name: [*([] if _OF_EARLIER.match(clause) else own[name]), *lent[name]] for name in own}
    together = bool(re.search(r"\b(total|together|combined|over the last|in all)\b", clause))
    km, kms = series["km"]
    times = own["time"] + gaps["time"]
    kilometres = own["km"] + gaps["km"] + ([sum(kms), km + sum(kms)] if together else [])
    ratios = [value / v for name in ("km", "time") for value, values in [series[name]] for v in _with_mean(values)]
    paces = [series["pace"][0] / v for v in _with_mean(series["pace"][1])]
    counts = [len(kms), len(kms) + 1]
    day = date.fromisoformat(run["date"])
    return {
        "pace": own["pace"],
        "pace gap": gaps["pace"],
        "pace minutes": [v / 60 for v in own["pace"] + gaps["pace"]],
        "time": times,
        "seconds": gaps["pace"] + gaps["time"],
        "minutes": [v / 60 for v in times + gaps["pace"]],
        "hours": [v / 3600 for v in times],
        "km": kilometres,
        "m": [run["elevation_gain_m"], *(1000 * v for v in gaps["km"] if _COMPARED.search(clause))],
        "climb rate": [run["elevation_gain_m"] / km],
        "km/h": [3600 / v for v in own["pace"]],
        "times": ratios + [1 / r for r in ratios],
        "percent": [p for r in ratios + paces for p in (100 * r, 100 / r, 100 * abs(1 - r), 100 * abs(1 - 1 / r))],
        "runs": counts,
        "date": [*counts, day.day, day.year],
        "bare": [*counts, day.year],
    }[unit]


def _spoken_of(clause: str, values: list[float]) -> list[float]:
    """The values of the earlier runs that a clause names; of all where it does not say which."""
    if _BEFORE_LAST.search(clause):
        return values[1:2]
    if re.search(r"\b(average|mean|usual)\b", clause):
        return [mean(values)] if values else []
    if re.search(r"\b(last|previous|prior|yesterday)\b(?! (two|2|three|3|few)\b)", clause):
        return values[:1]
    return _with_mean(values)


def _clauses(sentence: str) -> list[str]:
    """Parts of a sentence that speak of one run, so that a value is not lent from one to another.

    >>> _clauses("8 km at 6:14/km, after last run's 5 km and a nap")
    ['8 km at 6:14/km', '', " after last run's 5 km", ' and a nap']
    """
    return re.split(r"[,:;]+(?!\d)|(?=\s(?:and|but|after|from|than|to|against|versus|vs)\b)", sentence)


def _digits(text: str) -> str:
    """Write number words as digits where a unit follows: "twenty-one seconds", "half a kilometre".

    >>> _digits("four metres and twenty-one seconds a kilometre, one could say")
    '4 metres and 21 seconds a kilometre, one could say'
    """
    word = rf"\b({'|'.join(_WORDS)})(?:[\s-]({'|'.join(_SMALL)}))?(?=[\s-]+(?:{_AFTER_WORD})(?![\w/]))"
    return re.sub(word, lambda m: f"{_WORDS[m[1]] + _WORDS.get(m[2], 0):g}", text)


def _false_numbers(sentence: str, run: dict) -> list[str]:
    found, before = [], ""
    for clause in _clauses(sentence):
        # "the last run was slower, at 6:14/km": what follows still speaks of that run.
        goes_on = _OF_EARLIER.match(before) and re.match(r"\s*(?:at|and|in|over)\b", clause)
        before = before + clause if goes_on else clause
        found += _false_numbers_of_clause(clause, before, run)
    return found


def _false_numbers_of_clause(clause: str, context: str, run: dict) -> list[str]:
    found: list[str] = []

    def clock(match):
        hours, minutes, seconds = (int(g or 0) for g in match.group(1, 2, 3))
        stated, before = 3600 * hours + 60 * minutes + seconds, clause[: match.start()]
        if match[4] or re.search(r"\b(pace|speed)\b[^,;.]{0,12}$|\b(at|averag\w+)\s+(an?\s+|the\s+)?$", before):
            units = ["pace"]
        elif re.search(r"\b(in|took|for|lasted|time|clock\w*)\s+(of\s+|was\s+)?$", before):
            units = ["time"]
        else:
            units = ["pace", "time", "pace gap"]
        # Pace is rounded to a second and distance to 10 m, so their product is good to a few seconds.
        slack = {"pace": 0.5, "pace gap": 0.5, "time": 3 + run["distance_km"]}
        if not any(abs(stated - v) <= slack[unit] for unit in units for v in _statable(run, unit, context)):
            found.append(match[0].strip())
        return " " * len(match[0])

    rest = _CLOCK.sub(clock, clause.replace(run["date"], " "))
    for match in _NUMBER.finditer(rest):
        before, after = rest[: match.start()], rest[match.end() :]
        dated = match["ordinal"] or re.search(_MONTH_BEFORE, before) or re.match(_MONTH_AFTER, after)
        unit = _unit(match) or ("date" if dated else "bare")
        if not any(_rounds_to(match[1], v, before) for v in _statable(run, unit, context)):
            found.append(match[0].strip())
    return found


def _unit(match: re.Match) -> str | None:
    return next((unit for i, unit in enumerate(_UNITS) if match[f"u{i}"]), None)


def _rounds_to(stated: str, value: float, before: str) -> bool:
    """Whether a person may state the value so: to its last decimal, or looser and to one side after a hedge."""
    stated = stated.replace(",", ".")
    number, half = float(stated), 0.5 * 10 ** -len(stated.partition(".")[2])
    if re.search(r"\b(over|more than|past|above)\s+(a\s+)?$", before):
        return number - half <= value <= 1.15 * number + half
    if re.search(r"\b(under|less than|below|nearly|almost|barely|just short of)\s+(a\s+)?$", before):
        return 0.85 * number - half <= value <= number
    if re.search(r"\b(about|around|roughly|some|approximately)\s+(a\s+)?$", before):
        return abs(number - value) <= max(half, 0.08 * value)
    return abs(number - value) <= half + 1e-9


def _false_dates(sentence: str, run: dict) -> list[str]:
    day = date.fromisoformat(run["date"])
    found = [text for text in re.findall(r"\b\d{4}-\d\d-\d\d\b", sentence) if text != run["date"]]
    for names, true in ((_DAYS, _DAYS[day.weekday()]), (_MONTHS, _MONTHS[day.month - 1])):
        for name in names:
            # "may" and "march" are words too: months only after a word that says so.
            month = rf"\b(?:in|of|this|a|your|early|late|mid)[ -]{name}\b" if name in ("may", "march") else rf"\b{name}"
            if name != true and re.search(month, sentence):
                found.append(name)
    return found


def _false_comparisons(sentence: str, run: dict) -> list[str]:
    series = _series(run)
    found = [match[0] for pattern in (_BEYOND, _MIXED) for match in pattern.finditer(sentence)]
    if run["recent_runs"]:
        found += re.findall(r"\bfirst (?:run|outing) on record\b", sentence)
    for match in re.finditer(r"\b(half[ -])?marathon\b", sentence):
        if not any(abs(km - (21.1 if match[1] else 42.2)) < 0.25 for km in (series["km"][0], *series["km"][1])):
            found.append(match[0])
    sentence = re.sub(r"\bno longer (?!than\b)", " ", sentence)
    for match in _SAME.finditer(sentence):
        value, others = series["pace" if (match["what"] or match["of"]) in ("pace", "speed") else "km"]
        references, _ = _references(re.split(r"[,;:]", sentence[match.end() :])[0], others) if others else ([], False)
        if not any(abs(value - v) <= 0.01 * value for v in references):
            found.append(match[0])
    for match in _RATIO.finditer(sentence):
        factor = {"half": 0.5, "halv": 0.5, "trip": 3}.get(match[1][:4], 2)
        if not any(abs(ratio / factor - 1) <= 0.12 for ratio in _statable(run, "times", "")):
            found.append(match[0])
    for match in _COMPARED.finditer(sentence):
        if not _holds(match[1], sentence[: match.start()], sentence[match.end() :], series):
            found.append(match[0])
    for word, pattern in _CHANGES.items():
        for match in pattern.finditer(sentence):
            if not word or not _holds(word, sentence[: match.start()], sentence[match.end() :], series):
                found.append(match[0])
    return found


# A gap in seconds a kilometre, kilometres or seconds, as a claim may state it.
_SCALE = {"pace gap": 1, "seconds": 1, "km": 1, "m": 1000, "minutes": 1 / 60, "pace minutes": 1 / 60, "hours": 1 / 3600}


def _holds(word: str, before: str, after: str, series: dict) -> bool:
    """Whether "faster", "longest" and the like are true, given the words around them."""
    amount = _AMOUNT_BEFORE.search(before) or _AMOUNT_AFTER.match(after)
    unit = _unit(amount) if amount else None
    kind = "pace" if word[:4] in ("fast", "quic", "slow") else "km"
    if word[:4] in ("long", "shor") and unit in ("seconds", "minutes", "hours"):
        kind = "time"
    value, others = series[kind]
    sign = 1 if word[:4] in ("slow", "long", "furt", "fart") else -1  # the word claims more of it, or less
    if not others:
        return False
    if word.endswith("est"):
        return _negated(before) != all(sign * (value - v) > 0 for v in others)

    clause_before = re.split(r"[;:]", before)[-1]
    clause_after = re.split(r"[,;:]|\b(?:and|or|but|yet|while)\b(?=.*\d)", after)[0]
    references, every = _references(clause_after, others)
    if re.search(r"\b(last|previous|prior) \w+ (was|were|went|had been)\b[^,]*$", clause_before):
        if re.search(r"\bthan\b(?! (this|today|it)\b)", clause_after):  # the last run against earlier ones
            value, references = others[0], _with_mean(others)[1:]
        else:
            sign, references = -sign, others[:1]

    def true_of(other: float) -> bool:
        gap = sign * (value - other)
        return gap > 0 and (unit not in _SCALE or _rounds_to(amount["n"], gap * _SCALE[unit], before[: amount.start()]))

    return _negated(before) != (all if every else any)(map(true_of, references))


def _references(clause: str, others: list[float]) -> tuple[list[float], bool]:
    """What a clause compares with, and whether all of it must hold; without a word of it anything recent will do."""
    if re.search(r"\b(average|mean|usual|norm)\b", clause):
        return [mean(others)], False
    if _BEFORE_LAST.search(clause):
        return others[1:2], False
    if re.search(r"\b(than|as)\b.*\b(both|either|two|recent|others|any)\b", clause):
        return others, True
    if re.search(r"\b(than|as)\b.*\b(last|previous|prior|before|yesterday)\b", clause):
        return others[:1], False
    return _with_mean(others), False


def _negated(before: str) -> bool:
    return bool(re.search(r"\b(no|not|never|hardly|neither|nor|isn't|wasn't|without)\s+(?:\w+\s+){0,2}$", before))

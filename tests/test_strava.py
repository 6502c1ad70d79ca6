"""The export reader, on exports as Strava writes them in five languages, and on broken ones."""

import contextlib
import csv
import io
import random
import zipfile

import pytest

from pockettune.sources import strava
from pockettune.sources.strava import read_export

ENGLISH = (
    "Activity ID,Activity Date,Activity Name,Activity Type,Activity Description,Elapsed Time,Distance,Max Heart Rate,"
    "Relative Effort,Commute,Activity Private Note,Activity Gear,Filename,Athlete Weight,Bike Weight,Elapsed Time,"
    "Moving Time,Distance,Max Speed,Average Speed,Elevation Gain,Elevation Loss"
).split(",")
GERMAN = (
    "Aktivitäts-ID,Aktivitätsdatum,Name der Aktivität,Aktivitätsart,Aktivitätsbeschreibung,Verstrichene Zeit,Distanz,"
    "Max. Herzfrequenz,Relative Leistung,Pendeln,Hinweis,Ausrüstung,Dateiname,Sportlergewicht,Fahrradgewicht,"
    "Verstrichene Zeit,Bewegungszeit,Distanz,Höchstgeschw.,Durchschnittliche Geschwindigkeit,Höhenzunahme,Höhenunterschied"
).split(",")
FRENCH = (
    "ID de l'activité,Date de l'activité,Nom de l'activité,Type d'activité,Description de l'activité,Temps écoulé,Distance,"
    "FC max,Effort,Trajet,Note,Matériel,Nom du fichier,Poids,Poids du vélo,Temps écoulé,Durée de déplacement,Distance,"
    "Vitesse max.,Vitesse moyenne,Dénivelé positif,Dénivelé négatif"
).split(",")
SPANISH = (
    "ID de actividad,Fecha de la actividad,Nombre de la actividad,Tipo de actividad,Descripción,Tiempo transcurrido,"
    "Distancia,FC,Esfuerzo,Desplazamiento,Nota,Equipo,Nombre del archivo,Peso,Peso bici,Tiempo transcurrido,"
    "Tiempo en movimiento,Distancia,Velocidad máx.,Velocidad media,Una palabra nueva,Desnivel negativo"
).split(",")
CHINESE = "活动 ID,活动日期,活动名称,活动类型,活动描述,全程耗时,距离,文件名".split(",")


def row(day, kind, *, km="5.29", elapsed="2000", moving="1800.0", metres="5290.0", climb="12.4", note=""):
    cells = [
        "123",
        day,
        "Secret name",
        kind,
        note,
        elapsed,
        km,
        "",
        "",
        "false",
        "private",
        "shoes",
        "f.fit.gz",
        "70",
        "",
    ]
    return [*cells, elapsed, moving, metres, "4.0", "2.9", climb, "3"]


def write(folder, header, *rows, encoding="utf-8"):
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    path = folder / "activities.csv"
    path.write_text(text.getvalue(), encoding=encoding, newline="")
    return path


@pytest.mark.parametrize(
    ("header", "day", "kind", "numbers"),
    [
        (ENGLISH, "May 29, 2022, 3:53:35 PM", "Run", {}),
        (ENGLISH, "29 May 2022, 15:53:35", "Run", {}),
        (
            GERMAN,
            "29.05.2022, 15:53:35",
            "Lauf",
            {"km": "5,29", "moving": "1800,0", "metres": "5290,0", "climb": "12,4"},
        ),
        (FRENCH, "29 mai 2022 à 15:53:35", "Course à pied", {"km": "5,29", "climb": "12,4"}),
        (SPANISH, "29 may 2022, 15:53:35", "Carrera", {"km": "5,29"}),
    ],
)
def test_each_language_gives_the_same_run(tmp_path, header, day, kind, numbers):
    assert read_export(write(tmp_path, header, row(day, kind, **numbers))) == [
        {
            "date": "2022-05-29",
            "activity": "Run",
            "distance_km": 5.29,
            "pace": "5:40/km",
            "elevation_gain_m": 12,
            "recent_runs": [],
        }
    ]


def test_a_short_chinese_export_falls_back_to_kilometres_and_elapsed_time(tmp_path):
    cells = ["1", "2026年8月16日 09:01:41", "晨跑", "跑步", "", "1800", "5.29", "a.fit.gz"]
    (run,) = read_export(write(tmp_path, CHINESE, cells))
    assert (run["date"], run["distance_km"], run["pace"], run["elevation_gain_m"]) == ("2026-08-16", 5.29, "5:40/km", 0)


def test_types_become_english_and_other_sports_are_left_out(tmp_path):
    kinds = ["Lauf", "Traillauf", "Virtueller Lauf", "Radfahrt", "Schwimmen"]
    rows = [row(f"0{i}.05.2022, 10:00:00", kind) for i, kind in enumerate(kinds, 1)]
    assert [r["activity"] for r in read_export(write(tmp_path, GERMAN, *rows))] == ["Run", "Trail Run", "Virtual Run"]


def test_runs_come_oldest_first_with_the_two_before_newest_first(tmp_path):
    days = ["May 3, 2022, 7:00:00 AM", "May 1, 2022, 7:00:00 AM", "May 3, 2022, 6:00:00 AM", "May 2, 2022, 12:30:00 PM"]
    rows = [row(day, "Run", metres=str(1000.0 * i), moving=str(300.0 * i)) for i, day in enumerate(days, 3)]
    runs = read_export(write(tmp_path, ENGLISH, *rows))
    assert [r["distance_km"] for r in runs] == [4.0, 6.0, 5.0, 3.0]
    assert [[p["distance_km"] for p in r["recent_runs"]] for r in runs] == [[], [4.0], [6.0, 4.0], [5.0, 6.0]]
    assert list(runs[-1]) == ["date", "activity", "distance_km", "pace", "elevation_gain_m", "recent_runs"]


def test_midnight_and_noon(tmp_path):
    days = ["May 1, 2022, 12:05:00 PM", "May 1, 2022, 12:05:00 AM", "May 1, 2022, 11:00:00\u202fAM"]
    rows = [row(day, "Run", metres=str(1000.0 * i), moving=str(300.0 * i)) for i, day in enumerate(days, 3)]
    assert [r["distance_km"] for r in read_export(write(tmp_path, ENGLISH, *rows))] == [4.0, 5.0, 3.0]


def test_the_pace_is_rounded_as_a_whole_and_never_reads_sixty(tmp_path):
    # 359.6 seconds a kilometre: 6:00, not 5:60
    (run,) = read_export(write(tmp_path, ENGLISH, row("May 1, 2022, 7:00:00 AM", "Run", metres="10000", moving="3596")))
    assert run["pace"] == "6:00/km"


def test_missing_values(tmp_path):
    day = "May 1, 2022, 7:00:00 AM"
    rows = [
        row(day, "Run", moving="", elapsed="2116"),
        row(day, "Run", climb=""),
        row(day, "Run", metres="", km="5.29"),
    ]
    runs = read_export(write(tmp_path, ENGLISH, *rows))
    assert [r["pace"] for r in runs] == ["6:40/km", "5:40/km", "5:40/km"]
    assert [r["elevation_gain_m"] for r in runs] == [12, 0, 12]


def test_kilometres_with_a_thousands_comma(tmp_path):
    short = ENGLISH[:15]  # an old export without the second Distance
    cells = row("May 1, 2022, 7:00:00 AM", "Run", km="1,000.50", elapsed="360180")[:15]
    assert read_export(write(tmp_path, short, cells))[0]["distance_km"] == 1000.5


def test_impossible_runs_are_left_out_and_counted(tmp_path):
    day = "May 1, 2022, 7:00:00 AM"
    bad = [row(day, "Run", metres="0", km="0"), row(day, "Run", moving="100"), row(day, "Run", moving="9999")]
    bad += [row(day, "Run", moving="", elapsed=""), row(day, "Run", metres="3", moving="1")]
    with pytest.warns(UserWarning, match="left out 5 of 6 runs"):
        assert len(read_export(write(tmp_path, ENGLISH, *bad, row(day, "Run")))) == 1


def test_broken_headers_byte_order_marks_and_newlines(tmp_path):
    span = '<span class="translation_missing" title="translation missing: x">{}</span>'
    header = ["\ufeffActivity ID", span.format("Date"), "Name", span.format("Type"), *ENGLISH[4:]]
    header[16] = "translation missing: en-US.lib.export.portability_exporter.activities.horton_values.moving_time"
    lines = 'line one\r\nline, two\n"three"'
    path = write(
        tmp_path, header, row("May 1, 2022, 7:00:00 AM", "Run", note=lines), row("May 2, 2022, 7:00:00 AM", "Run")
    )
    assert [r["date"] for r in read_export(path)] == ["2022-05-01", "2022-05-02"]


def test_zip_folder_and_file_give_the_same(tmp_path):
    path = write(tmp_path, ENGLISH, row("May 1, 2022, 7:00:00 AM", "Run"), encoding="utf-8-sig")
    for inner in ("activities.csv", "export_1/activities.csv"):
        with zipfile.ZipFile(tmp_path / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__MACOSX/activities.csv", "junk")
            archive.writestr("media/photo.jpg", b"\xff")
            archive.write(path, inner)
        assert read_export(tmp_path / "export.zip") == read_export(tmp_path) == read_export(path)


def test_nothing_but_the_run_leaves_the_reader(tmp_path):
    canary = row("May 1, 2022, 7:00:00 AM", "Run", note="CANARY")
    (run,) = read_export(write(tmp_path, ENGLISH, canary))
    assert not any(word in str(run) for word in ("CANARY", "Secret", "private", "shoes", "70", "f.fit"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("activities.csv", "", "is empty"),
        ("activities.csv", "Namn,Datum,Typ\nCANARY,1,2\n", "the header begins: namn, datum, typ"),
        ("activities.csv", '123,"May 1, 2022, 7:00:00 AM",CANARY,Run\n', "no header line"),
        ("activities.csv", b"\xff\xfe\x00A", "not UTF-8"),
        ("export.zip", b"PK\x03\x04CANARY", "not a readable zip"),
        ("export.zip", b"", "not a readable zip"),
    ],
)
def test_what_is_no_export_is_refused_with_the_cause_and_no_row(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_export(path)
    assert "CANARY" not in str(error.value)


def test_a_date_of_unknown_form_shows_its_shape_only(tmp_path):
    with pytest.raises(ValueError, match=r"99/99/9999"):
        read_export(write(tmp_path, ENGLISH, row("05/29/2022 15:53", "Run")))


def test_a_line_cut_short_is_left_out_and_an_export_without_runs_is_said(tmp_path):
    day = "May 1, 2022, 7:00:00 AM"
    with pytest.warns(UserWarning, match="left out 1 of 2"):
        assert len(read_export(write(tmp_path, ENGLISH, row(day, "Run"), row(day, "Run")[:4]))) == 1
    with pytest.raises(ValueError, match="holds no runs"):
        read_export(write(tmp_path, ENGLISH, row(day, "Ride")))


def test_a_date_that_is_none_shows_no_letter_of_the_row(tmp_path):
    with pytest.raises(ValueError, match="aa aaaaaa aaaaaaa") as error:
        read_export(write(tmp_path, ENGLISH, row("my secret morning", "Run")))
    assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match="no calendar"):
        read_export(write(tmp_path, GERMAN, row("31.02.2022, 10:00:00", "Lauf")))


def test_missing_paths_and_zips_without_the_table(tmp_path):
    with pytest.raises(ValueError, match="found no nothing.zip"):
        read_export(tmp_path / "nothing.zip")
    with pytest.raises(ValueError, match="found no activities.csv"):
        read_export(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="holds no activities.csv"):
        read_export(tmp_path / "other.zip")


def test_an_oversized_member_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(strava, "MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("activities.csv", "0" * 100_000)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        read_export(tmp_path / "bomb.zip")
    (tmp_path / "activities.csv").write_text("0" * 2000)
    with pytest.raises(ValueError, match="more than 1,000"):
        read_export(tmp_path)


def test_a_zip_cut_anywhere_says_so(tmp_path):
    write(tmp_path, ENGLISH, *[row(f"May {i}, 2022, 7:00:00 AM", "Run") for i in range(1, 20)])
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "activities.csv", "activities.csv")
    whole = bytearray((tmp_path / "whole.zip").read_bytes())
    rng = random.Random(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "damaged.zip").write_bytes(damaged[: rng.randrange(1, len(damaged) + 1)])
        with contextlib.suppress(ValueError):  # every failure is this one; any other exception fails the test
            read_export(tmp_path / "damaged.zip")


def test_the_export_that_comes_along_is_read(root):
    runs = read_export(root / "data" / "strava_export")
    assert len(runs) >= 10 and {r["activity"] for r in runs} >= {"Run", "Trail Run"}

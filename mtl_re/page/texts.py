"""The demo page's words in Korean and English, and its style sheet. Only data: no user's text ever stands in here."""

from __future__ import annotations

from typing import Literal

Language = Literal["ko", "en"]

TEXTS: dict[Language, dict[str, str]] = {
    "ko": {
        "subtitle": "문장에서 두 대상 사이의 관계를 찾습니다. 모든 계산은 이 컴퓨터에서만 이루어집니다.",
        "tab_one": "문장 하나",
        "tab_file": "파일",
        "example": "예문 고르기",
        "sentence": "문장",
        "placeholder": "문장을 입력하고, 단어를 마우스로 드래그해 선택하세요.",
        "steps": "문장에서 단어를 드래그해 선택한 다음, 아래 단추로 주체와 대상을 표시하세요.",
        "mark_subject": "선택한 부분을 주체로",
        "mark_object": "선택한 부분을 대상으로",
        "type_subject": "주체의 종류",
        "type_object": "대상의 종류",
        "subject": "주체",
        "object": "대상",
        "predict": "관계 예측",
        "empty": "문장을 입력하거나 예문을 고르세요.",
        "no_subject": "주체를 아직 표시하지 않았습니다.",
        "no_object": "대상을 아직 표시하지 않았습니다.",
        "nothing": "선택된 글자가 없습니다. 문장에서 단어를 먼저 드래그해 선택하세요.",
        "waiting": "주체와 대상을 모두 표시하면 결과가 여기에 나옵니다.",
        "problem": "오류:",
        "gates_agree": "하드 게이트와 소프트 게이트가 같은 레이블을 고릅니다.",
        "gates_differ": "하드 게이트는 <b>{hard}</b>, 소프트 게이트는 <b>{soft}</b>: 서로 다릅니다.",
        "gate_title": "1. 게이트",
        "gate_help": "관계가 있는지, 있다면 단체(org)와 사람(per) 중 어느 쪽인지.",
        "passed": "통과",
        "note_hard": "하드",
        "note_soft": "소프트",
        "fine_title": "2. 세부 헤드",
        "fine_help": "게이트가 연 헤드의 레이블 확률 p(레이블 | 갈래). 닫힌 헤드는 흐리게 보입니다.",
        "open": "열림",
        "closed": "닫힘",
        "top_title": "3. 최종 확률 상위 5개",
        "top_help": "게이트와 세부 헤드의 확률을 곱한 값. 하드는 1등 갈래 안에서, 소프트는 전체에서 1등을 고릅니다.",
        "file_help": "KLUE-RE JSON이나 대회 CSV를 올리면 제출 파일(id, pred_label, probs)을 돌려줍니다. "
        "최대 {rows}행, {megabytes:g} MB.",
        "file": "파일 (.csv, .json, .jsonl)",
        "file_run": "예측하고 제출 파일 만들기",
        "file_missing": "파일을 먼저 올려 주세요.",
        "file_done": "{name}: {rows}행을 예측했습니다. 아래에서 제출 파일을 내려받으세요.",
        "file_labels": "가장 많이 예측된 레이블",
        "submission": "제출 파일",
        "too_many": "{rows:,}행이 넘습니다. 큰 파일은 mtl-re predict 명령을 쓰세요.",
        "too_big": "{megabytes:g} MB가 넘습니다. 큰 파일은 mtl-re predict 명령을 쓰세요.",
        "wrong_kind": ".csv, .json, .jsonl 파일만 읽습니다.",
    },
    "en": {
        "subtitle": "Finds the relation between two entities of a sentence. Everything is computed on this machine.",
        "tab_one": "One sentence",
        "tab_file": "A file",
        "example": "Pick an example",
        "sentence": "Sentence",
        "placeholder": "Type a sentence, then select a word with the mouse.",
        "steps": "Select a word in the sentence, then mark it as subject or object with the buttons below.",
        "mark_subject": "Selection is the subject",
        "mark_object": "Selection is the object",
        "type_subject": "Type of the subject",
        "type_object": "Type of the object",
        "subject": "Subject",
        "object": "Object",
        "predict": "Predict the relation",
        "empty": "Type a sentence or pick an example.",
        "no_subject": "No subject is marked yet.",
        "no_object": "No object is marked yet.",
        "nothing": "Nothing is selected. Select a word in the sentence first.",
        "waiting": "The result appears here once subject and object are marked.",
        "problem": "Error:",
        "gates_agree": "Hard and soft gate choose the same label.",
        "gates_differ": "The gates differ: hard says <b>{hard}</b>, soft says <b>{soft}</b>.",
        "gate_title": "1. Gate",
        "gate_help": "Is there a relation, and does it belong to an organisation (org) or a person (per)?",
        "passed": "passes",
        "note_hard": "hard",
        "note_soft": "soft",
        "fine_title": "2. Fine heads",
        "fine_help": "p(label | class) of the head that the gate opened. Closed heads are faded.",
        "open": "open",
        "closed": "closed",
        "top_title": "3. The five most probable labels",
        "top_help": "Gate times fine head. Hard takes the best label inside the best class, soft the best of all.",
        "file_help": "Upload KLUE-RE JSON or the contest's CSV and get the submission back (id, pred_label, probs). "
        "At most {rows} rows and {megabytes:g} MB.",
        "file": "File (.csv, .json, .jsonl)",
        "file_run": "Predict and make the submission",
        "file_missing": "Upload a file first.",
        "file_done": "{name}: {rows} rows predicted. Download the submission below.",
        "file_labels": "Most frequent predicted labels",
        "submission": "Submission",
        "too_many": "More than {rows:,} rows. For large files use the command mtl-re predict.",
        "too_big": "Larger than {megabytes:g} MB. For large files use the command mtl-re predict.",
        "wrong_kind": "Only .csv, .json and .jsonl files are read.",
    },
}

TYPES: dict[Language, dict[str, str]] = {
    "ko": {"PER": "사람", "ORG": "단체", "LOC": "장소", "DAT": "날짜", "POH": "기타 고유명사", "NOH": "숫자"},
    "en": {"PER": "person", "ORG": "organisation", "LOC": "place", "DAT": "date", "POH": "other name", "NOH": "number"},
}

GLOSSES: dict[Language, dict[str, str]] = {
    "ko": {
        "no_relation": "관계 없음",
        "org": "단체",
        "per": "사람",
        "org:dissolved": "해산일",
        "org:founded": "설립일",
        "org:place_of_headquarters": "본부 위치",
        "org:alternate_names": "다른 이름",
        "org:member_of": "상위 단체",
        "org:members": "소속 단체",
        "org:political/religious_affiliation": "정치·종교 성향",
        "org:product": "제품·작품",
        "org:founded_by": "설립자",
        "org:top_members/employees": "주요 구성원",
        "org:number_of_employees/members": "구성원 수",
        "per:date_of_birth": "출생일",
        "per:date_of_death": "사망일",
        "per:place_of_birth": "출생지",
        "per:place_of_death": "사망지",
        "per:place_of_residence": "거주지",
        "per:origin": "출신·국적",
        "per:employee_of": "소속",
        "per:schools_attended": "출신 학교",
        "per:alternate_names": "다른 이름",
        "per:parents": "부모",
        "per:children": "자녀",
        "per:siblings": "형제자매",
        "per:spouse": "배우자",
        "per:other_family": "기타 가족",
        "per:colleagues": "동료",
        "per:product": "작품·제품",
        "per:religion": "종교",
        "per:title": "직함",
    },
    "en": {"org": "organisation", "per": "person"},
}
"""Labels in a few words, where the label alone does not say it."""

STYLE = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container:not(.dark *) { --block-info-text-color: #5a6473; }
.re-title { --re-muted: #5a6473; }
.dark .re-title { --re-muted: #aab4c2; }
.re-title h1 { font-size: 1.5rem; margin: 0; }
.re-title p { margin: .25rem 0 0; color: var(--re-muted); }
#example input { text-overflow: ellipsis; padding-right: 1.6rem; }
#header { flex-wrap: wrap; }
#header .re-title { flex: 1 1 300px; }
#mark-subject, #mark-object { min-height: 3rem; background: transparent; font-weight: 600; }
#mark-subject { border: 3px solid #0b6b57; color: #0b6b57; }
#mark-object { border: 3px double #8a3b12; color: #8a3b12; }
.dark #mark-subject { border-color: #7fe0c6; color: #7fe0c6; }
.dark #mark-object { border-color: #ffb48a; color: #ffb48a; }
.re-page {
  --re-muted: #5a6473; --re-s: #0b6b57; --re-o: #8a3b12; --re-s-soft: #d8f1ea; --re-o-soft: #fbe6d8;
  --re-fill: #7d8ea3; --re-chosen: #1d4ed8; --re-track: #e5e9ef;
}
.dark .re-page {
  --re-muted: #aab4c2; --re-s: #7fe0c6; --re-o: #ffb48a; --re-s-soft: #123d34; --re-o-soft: #472414;
  --re-fill: #7688a0; --re-chosen: #7aa2ff; --re-track: #2b3442;
}
.re-page p { margin: 0; word-break: keep-all; overflow-wrap: anywhere; }
.re-page .re-hint { color: var(--re-muted); margin-top: .35rem; }
.re-page .re-sentence { font-size: 1.1rem; line-height: 2.6; overflow-wrap: anywhere; white-space: pre-wrap; }
.re-page .re-glued { white-space: nowrap; }
.re-page .re-word { white-space: pre-wrap; }
.re-page mark {
  display: inline-block; position: relative; line-height: 1.5; color: inherit;
  padding: 0 .3rem; margin: 0 .1rem; border-radius: .3rem; max-width: 100%;
}
.re-page mark.re-subject { background: var(--re-s-soft); border-bottom: 3px solid var(--re-s); }
.re-page mark.re-object { background: var(--re-o-soft); border-bottom: 3px double var(--re-o); }
.re-page .re-tag {
  position: absolute; left: 0; bottom: 100%; font-size: .7rem; line-height: 1.25; white-space: nowrap; font-weight: 600;
}
.re-page .re-subject .re-tag { color: var(--re-s); }
.re-page .re-object .re-tag { color: var(--re-o); }
.re-page .re-verdict {
  border: 1px solid var(--border-color-primary); border-left: 5px solid var(--re-chosen);
  border-radius: .5rem; padding: .8rem 1rem; background: var(--background-fill-secondary);
}
.re-page .re-pair { color: var(--re-muted); overflow-wrap: anywhere; }
.re-page .re-label { font-size: 1.35rem; margin: .15rem 0; overflow-wrap: anywhere; }
.re-page #re-score { font-variant-numeric: tabular-nums; color: var(--re-muted); font-size: 1.1rem; }
.re-page .re-gates { font-size: .9rem; overflow-wrap: anywhere; }
.re-page section, .re-page #re-rows { margin: 1.1rem 0 .3rem; }
.re-page h3 { font-size: 1rem; font-weight: 650; margin: 0; }
.re-page h4 { font-size: .95rem; font-weight: 600; margin: 0 0 .3rem; }
.re-page .re-help { font-size: .85rem; color: var(--re-muted); margin: .1rem 0 .45rem; }
.re-page ul.re-bars { list-style: none; margin: 0; padding: 0; }
.re-page li.re-bar {
  display: grid; grid-template-columns: minmax(0, 1fr) 3.2rem; column-gap: .5rem; align-items: baseline;
  margin: 0 0 .4rem;
}
.re-page .re-name { font-size: .9rem; word-break: keep-all; overflow-wrap: anywhere; }
.re-page .re-value {
  grid-column: 2; grid-row: 1; text-align: right; font-variant-numeric: tabular-nums; font-size: .9rem;
}
.re-page .re-track {
  grid-column: 1 / 3; height: .5rem; border-radius: .25rem; background: var(--re-track); overflow: hidden;
}
.re-page .re-fill { display: block; height: 100%; border-radius: .25rem; background: var(--re-fill); }
.re-page .re-chosen .re-fill { background: var(--re-chosen); }
.re-page .re-chosen .re-name, .re-page .re-chosen .re-value { font-weight: 650; }
.re-page .re-gloss { color: var(--re-muted); font-weight: 400; font-size: .85em; }
.re-page .re-badge {
  display: inline-block; font-size: .72rem; line-height: 1.3; font-weight: 600; padding: 0 .4rem; border-radius: .6rem;
  border: 1px solid currentColor;
}
.re-page .re-heads { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem 1.5rem; }
.re-page .re-closed { opacity: .6; }
.re-page .re-problem {
  border: 1px solid var(--re-o); border-left-width: 5px; border-radius: .5rem; padding: .7rem .9rem;
  overflow-wrap: anywhere;
}
"""

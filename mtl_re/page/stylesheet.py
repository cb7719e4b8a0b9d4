"""The page's style sheet: layout, and the colours of a light and a dark theme."""

STYLESHEET = """
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

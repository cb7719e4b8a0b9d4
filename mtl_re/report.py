"""placeholder"""

import json


def read_json(p):
    return json.loads(p.read_text())


def write_run_report(d):
    pass


def summary(r):
    return f"n {r['n']} F1 {r['micro_f1']:.2f} {r['ci']['micro_f1']} AUPRC {r['auprc']:.2f} {r['ci']['auprc']}"

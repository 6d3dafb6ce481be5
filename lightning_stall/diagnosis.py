def diagnose(findings, outcome):
    return []

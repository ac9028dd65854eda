"""The verbs that plan and compare runs: plan, sweep, fit, report."""

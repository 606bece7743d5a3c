"""Where and whether work runs: units, ledger, runner, executors. Knows no stage."""

"""The audit of a run against the laws, the ledger of its seconds, the verdict."""

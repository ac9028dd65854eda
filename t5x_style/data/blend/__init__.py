"""Which source each row comes from: exact by token, any row found at once."""

"""Plans, compiled steps, accounts and derived values, as text."""

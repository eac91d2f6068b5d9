"""Bad input by the thousand: whatever is not one clear line of refusal is a finding. See `eval/fuzz.py`."""

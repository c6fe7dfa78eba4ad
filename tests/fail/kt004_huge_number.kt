param context: int = 123456789012345678901234567890123
param ratio: float = 1e400

param twice: int = 2 * once
param once: int = 1

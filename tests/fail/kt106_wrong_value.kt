# define: context=many
# define: fast=1
param context: int = 8192
param fast: bool = true

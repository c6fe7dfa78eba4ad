# define: contxt=4096
param context: int = 8192

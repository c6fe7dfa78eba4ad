param context: integer = 8192

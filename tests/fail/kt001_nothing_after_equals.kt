let experts =

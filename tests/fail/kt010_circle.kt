include "included/circle.kt"

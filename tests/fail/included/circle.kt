include "../kt010_circle.kt"

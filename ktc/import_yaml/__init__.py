"""Converts KTransformers' YAML rules to `.kt` rules, and says what the YAML silently got wrong.

conversion = convert(Path("rules.yaml"), config)
print(conversion.text)
"""

from ktc.import_yaml.convert import Conversion, convert, guess_model

__all__ = ["Conversion", "convert", "guess_model"]

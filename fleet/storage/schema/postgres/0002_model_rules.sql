-- What a model asks beyond topics and lifetimes, as JSON: fleet.domain.model_rules. What is not said is as usual.
ALTER TABLE model ADD COLUMN rules text NOT NULL DEFAULT '{}';

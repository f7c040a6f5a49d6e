-- When the device's budget of certificates is full again (fleet.domain.certificate_budget).
ALTER TABLE device ADD COLUMN budget_full_at INTEGER;

-- What the engine loads at start: rollouts that are live, and those with a live attempt. Only live rows are
-- rewritten, so the cost is one pass over rollouts and attempts, without inputs and spans.

ALTER TABLE rollouts ADD COLUMN live INTEGER NOT NULL DEFAULT 0;
UPDATE rollouts SET live = 1 WHERE status IN (1, 2, 3, 7);
CREATE INDEX rollouts_live ON rollouts (key) WHERE live = 1;

ALTER TABLE attempts ADD COLUMN live INTEGER NOT NULL DEFAULT 0;
UPDATE attempts SET live = 1 WHERE status IN (1, 2);
DROP INDEX attempts_live;
CREATE INDEX attempts_live ON attempts (rollout_key) WHERE live = 1;

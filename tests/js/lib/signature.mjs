// The name of a partial database, worked out by a client.
import { createHash } from 'node:crypto';

/** Lower-case hex of SHA-256 over the sorted, de-duplicated readers as a JSON array, cut to 24 digits. */
export function signature(readers) {
  const sorted = [...new Set(readers)].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  return createHash('sha256').update(JSON.stringify(sorted)).digest('hex').slice(0, 24);
}

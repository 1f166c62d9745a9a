// Waiting for a state, with a deadline: no test sleeps and hopes.

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until `check` gives something true and gives that; what it throws counts as "not yet", unless `fatal`. */
export async function until(check, what, ms = 10_000) {
  const deadline = Date.now() + ms;
  let why = '';
  for (;;) {
    try {
      const result = await check();
      if (result) return result;
    } catch (error) {
      if (error.fatal) throw error;
      why = `: ${error.message}`;
    }
    if (Date.now() > deadline) throw new Error(`waited ${ms} ms for ${what}${why}`);
    await sleep(25);
  }
}

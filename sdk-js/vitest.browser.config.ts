import { defineConfig } from "vitest/config";

/** Tests in a real Chromium, which they drive from Node; `tests/js/test_browser.py` starts what they need. */
export default defineConfig({
  test: { include: ["browser/**/*.test.ts"], testTimeout: 120_000, hookTimeout: 60_000, fileParallelism: false },
});

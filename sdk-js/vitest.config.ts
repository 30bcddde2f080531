import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 60_000,
    fileParallelism: false, // two cores, shared with the servers
    coverage: {
      provider: "v8",
      include: ["src/**"],
      exclude: ["src/image.ts", "src/indexeddb.ts"], // they run in Chromium: see browser/
      reporter: ["text", "json-summary"],
      reportsDirectory: "coverage",
    },
  },
});

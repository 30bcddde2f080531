import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 60_000,
    fileParallelism: false, // two cores, shared with the servers
    coverage: { provider: "v8", include: ["src/**"], reporter: ["text", "json-summary"], reportsDirectory: "coverage" },
  },
});

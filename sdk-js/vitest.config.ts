import { defineConfig } from "vitest/config";

const here = (name: string): string => new URL(name, import.meta.url).pathname;

export default defineConfig({
  resolve: {
    alias: [
      { find: /^privdfs$/, replacement: here("src/index.ts") }, // as the examples name it
      // As React Native's bundler finds it.
      {
        find: "onnxruntime-react-native",
        replacement: here("node_modules/onnxruntime-react-native/dist/module/index.js"),
      },
    ],
  },
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 60_000,
    server: { deps: { inline: [/onnxruntime-react-native/] } }, // its react-native is a stub of the tests
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

import Foundation
import Testing

/// A test's own folder. It goes away with the test, unless the test failed: then it stays, and what was run in it is
/// printed, so that it can be run again.
final class Folder: @unchecked Sendable {
    /// The running test's folder.
    @TaskLocal static var current = Folder(path: NSTemporaryDirectory())

    let path: String
    private let lock = NSLock()
    // Guarded by `lock`.
    private var commands: [String] = []
    private var failed = false

    private init(path: String) { self.path = path }

    init(name: String) {
        let word = String(name.map { $0.isLetter || $0.isNumber ? $0 : "-" }.prefix(60))
        path = NSTemporaryDirectory() + "vmrr-\(word)-\(UInt32.random(in: 0...0xFFFFFF))"
        try? FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    func callAsFunction(_ name: String) -> String { path + "/" + name }

    /// Makes a file of these bytes and returns its path.
    func file(_ name: String, _ bytes: some Sequence<UInt8>) throws -> String {
        try Data(bytes).write(to: URL(fileURLWithPath: self(name)))
        return self(name)
    }

    func file(_ name: String, text: String) throws -> String { try file(name, text.utf8) }

    func bytes(_ name: String) -> Data { FileManager.default.contents(atPath: self(name)) ?? Data() }

    func note(_ output: Output) { lock.withLock { commands.append(output.commandLine) } }
    func fail() { lock.withLock { failed = true } }

    /// Removes the folder, or says what it holds.
    func finish() {
        lock.withLock {
            guard failed else {
                try? FileManager.default.removeItem(atPath: path)
                return
            }
            let files = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
            let traces = files.filter { $0.hasSuffix(".vmrr") }.sorted()
            print("failed: kept \(path) (\(files.count) files); to see it again:")
            for command in commands.suffix(20) { print("    (cd \(path) && \(command))") }
            for trace in traces.prefix(5) { print("    \(Vmrr.binary) replay --verify \(path)/\(trace)") }
        }
    }
}

/// Gives each test a folder.
struct OwnFolder: SuiteTrait, TestTrait, TestScoping {
    let isRecursive = true

    func scopeProvider(for test: Test, testCase: Test.Case?) -> Self? { testCase == nil ? nil : self }

    func provideScope(
        for test: Test, testCase: Test.Case?, performing function: @Sendable () async throws -> Void
    ) async throws {
        let folder = Folder(name: test.name)
        defer { folder.finish() }
        try await Folder.$current.withValue(folder) {
            do { try await function() } catch {
                folder.fail()
                throw error
            }
        }
    }
}

extension Trait where Self == OwnFolder {
    static var ownFolder: Self { Self() }
}

extension Trait where Self == IssueHandlingTrait {
    /// Keeps the test's folder when something is wrong in it.
    static var keptOnFailure: Self {
        .compactMapIssues { issue in
            Folder.current.fail()
            return issue
        }
    }
}

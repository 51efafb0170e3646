import Foundation

/// A command for the shell, with text on its standard input.
struct ShellCommand {
    private let command: String
    private let environment: [String: String]

    init(_ command: String, environment: [String: String]) {
        self.command = command
        self.environment = environment
    }

    /// Runs it to its end; its output goes where this program's goes.
    ///
    /// - Returns: the status, or 128 and the signal that ended it.
    func run(input: String) throws -> Int32 {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", command]
        process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        // A file and no pipe: a command needn't read its input.
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("vmrr-\(UUID().uuidString).json")
        defer { try? FileManager.default.removeItem(at: file) }
        do {
            try Data(input.utf8).write(to: file)
            process.standardInput = try FileHandle(forReadingFrom: file)
            try process.run()
        } catch {
            throw FindError.command("can't run /bin/sh: \(error.localizedDescription)")
        }
        process.waitUntilExit()
        return process.terminationReason == .uncaughtSignal
            ? 128 + process.terminationStatus : process.terminationStatus
    }
}

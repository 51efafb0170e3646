import Foundation
import Testing

/// The built binary.
enum Vmrr {
    /// The package's folder: these sources stand in Tests/EndToEndTests/Support.
    static let root = (0..<4).reduce(URL(fileURLWithPath: #filePath)) { url, _ in url.deletingLastPathComponent() }

    /// The binary under test: VMRR_BINARY, or what `make build` leaves.
    static let binary = ProcessInfo.processInfo.environment["VMRR_BINARY"]
        ?? root.appendingPathComponent(".build/release/vmrr").path

    struct Missing: Error, CustomStringConvertible {
        var description: String { "there is no binary at \(Vmrr.binary): run make build, or set VMRR_BINARY" }
    }

    /// Runs vmrr and checks what holds for every run: it ends before the deadline, by itself, with a status from the
    /// documented set, and without a Swift backtrace. `around` is a command that runs the one after it.
    ///
    /// The run is killed at `deadline` (seconds), and its children with it.
    @discardableResult
    static func run(
        _ arguments: [String], in folder: Folder = .current, deadline: Double = 60, input: String? = nil,
        around: [String] = [], signals: [Signal] = [], sourceLocation: SourceLocation = #_sourceLocation
    ) throws -> Output {
        guard FileManager.default.isExecutableFile(atPath: binary) else { throw Missing() }
        let output = try Child.run(
            around + [binary] + arguments, in: folder.path, deadline: deadline, input: input, signals: signals)
        folder.note(output)
        output.checkSane(killed: signals.contains { $0.number == SIGKILL }, sourceLocation)
        return output
    }
}

/// A signal sent to a running child, at a time or when it has printed something.
struct Signal {
    enum Moment {
        /// Seconds after the start.
        case after(Double)
        /// Once standard output and standard error together hold this text.
        case output(String)
    }

    var number: Int32
    var moment: Moment
}

/// What a run left.
struct Output: CustomStringConvertible {
    var command: [String]
    var folder: String
    /// The exit status; -1 where a signal ended the process.
    var status: Int32 = -1
    /// The signal that ended it.
    var signal: Int32?
    var timedOut = false
    var stdout = Data()
    var stderr = Data()
    /// The most memory the process had, in bytes: exact where it is more than the test process ever had, otherwise the
    /// last peak that was seen, at most some hundredths of a second before its end.
    var peakMemory = 0
    var seconds = 0.0

    var text: String { String(decoding: stdout, as: UTF8.self) }
    var errors: String { String(decoding: stderr, as: UTF8.self) }
    var lines: [Substring] { text.split(separator: "\n") }

    /// Standard output as JSON; what isn't JSON has no members.
    var json: JSON { JSON(try? JSONSerialization.jsonObject(with: stdout, options: .fragmentsAllowed)) }

    /// The command as a shell takes it.
    var commandLine: String {
        command.map { word in
            word.allSatisfy { $0.isLetter || $0.isNumber || "-_./=:@+,".contains($0) } && !word.isEmpty
                ? word : "'" + word.replacingOccurrences(of: "'", with: "'\\''") + "'"
        }.joined(separator: " ")
    }

    var description: String {
        let end = timedOut ? "killed at its deadline" : signal.map { "ended by signal \($0)" } ?? "status \(status)"
        return "\(commandLine)\n\(end) after \(seconds) s\nstdout: \(text.suffix(1000))\nstderr: \(errors.suffix(2000))"
    }

    static let statuses: Set<Int32> = [0, 1, 3, 10, 64, 65, 69]

    /// What no run may do, whatever a user, a guest or a file does.
    var insanity: String? {
        if timedOut { return "it didn't end in time" }
        if let signal { return "signal \(signal) ended it" }
        if !Self.statuses.contains(status) { return "status \(status) isn't a documented one" }
        for word in ["Fatal error", "Crash", "Backtrace", "Thread 0", "Illegal instruction", "NSCocoaErrorDomain"]
        where errors.contains(word) { return "standard error has \"\(word)\"" }
        return nil
    }

    func checkSane(killed: Bool, _ sourceLocation: SourceLocation) {
        if killed, !timedOut { return }
        if let insanity { Issue.record("\(insanity): \(self)", sourceLocation: sourceLocation) }
    }
}

/// A JSON value that answers every question, if need be with nil.
struct JSON: Equatable, CustomStringConvertible, @unchecked Sendable {
    // Immutable: what JSONSerialization makes.
    let value: Any?
    init(_ value: Any?) { self.value = value }
    init(line: some StringProtocol) {
        value = try? JSONSerialization.jsonObject(with: Data(line.utf8), options: .fragmentsAllowed)
    }

    subscript(key: String) -> JSON { JSON((value as? [String: Any])?[key]) }
    var keys: Set<String> { Set((value as? [String: Any])?.keys.map { $0 } ?? []) }
    var array: [JSON]? { (value as? [Any])?.map { JSON($0) } }
    var string: String? { value as? String }
    var int: Int? { (value as? NSNumber)?.intValue }
    var double: Double? { (value as? NSNumber)?.doubleValue }
    var bool: Bool? { value as? Bool }
    var isNull: Bool { value is NSNull }
    var description: String { value.map { "\($0)" } ?? "nothing" }
    static func == (a: JSON, b: JSON) -> Bool {
        switch (a.value as? NSObject, b.value as? NSObject) {
        case (let a?, let b?): a.isEqual(b)
        case (nil, nil): true
        default: false
        }
    }
}

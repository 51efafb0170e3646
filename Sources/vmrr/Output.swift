import CKVM
import Foundation
import Replay
import VMCore

/// One line for the user, on standard error: standard output belongs to the guest and to reports.
func say(_ line: String) { write(line + "\n", to: 2) }

/// Writes all of a text, or as much as the reader takes.
func write(_ text: String, to descriptor: Int32 = 1) { write(Array(text.utf8), to: descriptor) }

func write(_ bytes: [UInt8], to descriptor: Int32 = 1) {
    var rest = bytes[...]
    while !rest.isEmpty {
        let count = rest.withUnsafeBytes { Foundation.write(descriptor, $0.baseAddress, $0.count) }
        if count < 0 {
            if ckvm_errno() == EINTR { continue }
            return
        }
        rest = rest.dropFirst(count)
    }
}

typealias JSON = Replay.JSON

/// How reports on standard output look.
var outputStyle: Style {
    isatty(1) != 0 && (ProcessInfo.processInfo.environment["NO_COLOR"] ?? "").isEmpty ? .colored : .plain
}

/// A bar on standard error for work that takes longer than a second; on a terminal only.
struct ProgressBar {
    private let label: String
    private let start = hostTime()
    private var last = Nanoseconds(0)
    private var isShown = false
    private let isTerminal = isatty(2) != 0

    init(_ label: String) { self.label = label }

    /// `fraction` is 0 to 1.
    mutating func update(_ fraction: Double) {
        guard isTerminal else { return }
        let now = hostTime()
        guard now - start > .seconds(1), now - last > .milliseconds(100) else { return }
        last = now
        isShown = true
        let width = 30
        let filled = Int(Double(width) * min(1, max(0, fraction)))
        write("\r\(label) [" + String(repeating: "#", count: filled) + String(repeating: ".", count: width - filled)
            + "] \(Int(fraction * 100)) %", to: 2)
    }

    /// Takes the bar away.
    mutating func finish() {
        if isShown { write("\r\u{1B}[K", to: 2) }
        isShown = false
    }
}

/// Bytes as people write them.
func humanBytes(_ bytes: UInt64) -> String {
    switch bytes {
    case ..<10_240: "\(bytes) B"
    case ..<(10 << 20): "\(bytes >> 10) KiB"
    default: "\(bytes >> 20) MiB"
    }
}

func humanSeconds(_ seconds: Double) -> String {
    seconds < 1 ? "\(Int(seconds * 1000)) ms" : "\((seconds * 100).rounded() / 100) s"
}

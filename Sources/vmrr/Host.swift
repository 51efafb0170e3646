import CKVM
import Dispatch
import Foundation
import VMCore

/// Calls something on each of some signals.
final class SignalWatch {
    private let sources: [any DispatchSourceSignal]

    /// The signals that end a command.
    static let ending = [SIGINT, SIGTERM, SIGHUP]

    init(_ signals: [Int32] = ending, on queue: DispatchQueue = .global(), _ action: @escaping @Sendable () -> Void) {
        sources = signals.map { number in
            ckvm_ignore_signal(number)
            let source = DispatchSource.makeSignalSource(signal: number, queue: queue)
            source.setEventHandler(handler: action)
            source.resume()
            return source
        }
    }

    deinit { sources.forEach { $0.cancel() } }
}

/// Saves copies of the trace that is being recorded: NAME-1.vmrr, NAME-2.vmrr, beside it.
final class TraceSaver: @unchecked Sendable {
    /// Everything below happens here.
    let queue = DispatchQueue(label: "vmrr.save")
    private let base: String
    private let ending: String
    private var save: (@Sendable (String) throws -> Void)?
    private var wanted = false
    private var paths: [String] = []

    init(beside path: String) { (base, ending) = splitPath(path) }

    /// The recording that is saved from now on; what was asked for before it is done now.
    func attach(_ save: @escaping @Sendable (String) throws -> Void) {
        queue.sync {
            self.save = save
            if wanted { saveNow() }
        }
    }

    /// Waits for what is being saved; nothing is saved any more. Returns all that was.
    func finish() -> [String] {
        queue.sync {
            save = nil
            return paths
        }
    }

    /// To be called on `queue`.
    func saveNow() {
        guard let save else {
            wanted = true
            return
        }
        wanted = false
        var number = 1
        while FileManager.default.fileExists(atPath: "\(base)-\(number)\(ending)") { number += 1 }
        let path = "\(base)-\(number)\(ending)"
        do {
            try save(path)
            paths.append(path)
            say("vmrr: saved \(path)")
        } catch {
            say("vmrr: \(error)")
        }
    }
}

/// A path without its extension, and that with its dot.
private func splitPath(_ path: String) -> (base: String, ending: String) {
    let name = URL(fileURLWithPath: path).pathExtension
    let ending = name.isEmpty ? "" : ".\(name)"
    return (String(path.dropLast(ending.count)), ending)
}

/// The path of a further trace beside one: NAME-2.vmrr.
func numbered(_ path: String, _ number: Int) -> String {
    let (base, ending) = splitPath(path)
    return "\(base)-\(number)\(ending)"
}

/// Hands a stop request to whatever is running now.
final class Stopper: @unchecked Sendable {
    private let lock = DispatchSemaphore(value: 1)
    // Guarded by `lock`.
    private var action: (@Sendable () -> Void)?
    private var requested = false

    /// Whether a stop was asked for.
    var isRequested: Bool {
        lock.wait()
        defer { lock.signal() }
        return requested
    }

    func attach(_ action: @escaping @Sendable () -> Void) {
        lock.wait()
        self.action = action
        let late = requested
        lock.signal()
        if late { action() }
    }

    func stop() {
        lock.wait()
        requested = true
        let action = action
        lock.signal()
        action?()
    }
}

import CKVM
import Dispatch
import VMCore

/// Opens KVM and tries out what it can.
func openKVM() throws -> (KVMSystem, EngineCapabilities) {
    let system = try KVMSystem()
    return (system, try SelfTests(system: system).capabilities())
}

/// Calls `stop` on the first SIGINT, SIGTERM or SIGHUP.
final class SignalWatch {
    private let sources: [any DispatchSourceSignal]

    init(_ stop: @escaping @Sendable () -> Void) {
        sources = [SIGINT, SIGTERM, SIGHUP].map { number in
            ckvm_ignore_signal(number)
            let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
            source.setEventHandler(handler: stop)
            source.resume()
            return source
        }
    }

    deinit { sources.forEach { $0.cancel() } }
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

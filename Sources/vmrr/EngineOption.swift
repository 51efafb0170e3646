import ArgumentParser
import VMCore

/// `--engine`, for every command that runs a guest.
struct EngineOption: ParsableArguments {
    @Option(name: .customLong("engine"),
            help: ArgumentHelp("What executes the guest: kvm, or soft, a processor in software.", valueName: "kvm|soft"))
    var kind = EngineKind.kvm
}

extension EngineKind: ExpressibleByArgument {}
